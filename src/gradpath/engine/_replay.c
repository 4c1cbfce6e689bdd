/* Replays the NumPy calls of one timestep for many timesteps, without Python in between: see replay.py, which records
 * them. The inner loops called here are NumPy's own, so that every bit is what NumPy gives.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <string.h>
#include <numpy/ndarraytypes.h>
#include <numpy/ufuncobject.h>

enum { MAX_ARGS = 4, MAX_OUTER = 3, MAX_CORE = 3, MAX_ARRAYS = 64 };

/* Where an argument lies: in array `array`, `offset` bytes from its row; and how far it moves in each outer loop. */
typedef struct {
    npy_int64 array, offset, outer[MAX_OUTER];
} Operand;

_Static_assert(sizeof(npy_intp) == sizeof(npy_int64), "addresses of 64 bits");

/* One call, as replay.py packs it into int64: a ufunc's inner loop, with its `dims` and `steps`, for each outer index;
 * or, with loop = 0, a guard over (outer[0], outer[1]) rows of dims[0] elements of `data` bytes.
 */
typedef struct {
    npy_int64 loop, data, args, outer[MAX_OUTER];
    npy_intp dims[1 + MAX_CORE];
    npy_intp steps[MAX_ARGS + 2 * MAX_ARGS];
    Operand operands[MAX_ARGS];
} Call;

static void invoke(const Call *call, char *const *at)
{
    PyUFuncGenericFunction loop = (PyUFuncGenericFunction)(npy_intp)call->loop;
    char *args[MAX_ARGS];
    npy_intp dims[1 + MAX_CORE];
    for (npy_int64 i = 0; i < call->outer[0]; i++)
        for (npy_int64 j = 0; j < call->outer[1]; j++)
            for (npy_int64 k = 0; k < call->outer[2]; k++) {
                for (int a = 0; a < call->args; a++) {
                    const npy_int64 *outer = call->operands[a].outer;
                    args[a] = at[a] + i * outer[0] + j * outer[1] + k * outer[2];
                }
                memcpy(dims, call->dims, sizeof dims);
                loop(args, dims, call->steps, (void *)(npy_intp)call->data);
            }
}

/* Is the largest |x| of every row, over all arguments, 0 or in [low, high]? Compared as integers, whose order is that of
 * non-negative floats, and whose maximum the compiler vectorises. A NaN counts as outside.
 */
#define DEFINE_GUARD(NAME, TYPE, BITS)                                                                                \
    static int NAME(const Call *call, char *const *at, double lower, double upper)                                    \
    {                                                                                                                 \
        TYPE bounds[2] = {(TYPE)lower, (TYPE)upper};                                                                  \
        BITS low, high, sign = (BITS)1 << (8 * sizeof(BITS) - 1);                                                     \
        memcpy(&low, &bounds[0], sizeof low);                                                                         \
        memcpy(&high, &bounds[1], sizeof high);                                                                       \
        for (npy_int64 i = 0; i < call->outer[0]; i++)                                                                \
            for (npy_int64 j = 0; j < call->outer[1]; j++) {                                                          \
                BITS largest = 0;                                                                                     \
                for (int a = 0; a < call->args; a++) {                                                                \
                    const npy_int64 *outer = call->operands[a].outer;                                                 \
                    const BITS *x = (const BITS *)(at[a] + i * outer[0] + j * outer[1]);                              \
                    for (npy_intp k = 0; k < call->dims[0]; k++) {                                                    \
                        BITS size = x[k] & ~sign;                                                                     \
                        largest = size > largest ? size : largest;                                                    \
                    }                                                                                                 \
                }                                                                                                     \
                if (largest > high || (largest < low && largest))                                                     \
                    return 0;                                                                                         \
            }                                                                                                         \
        return 1;                                                                                                     \
    }
DEFINE_GUARD(guard_float, float, npy_int32)
DEFINE_GUARD(guard_double, double, npy_int64)

static PyObject *run(PyObject *self, PyObject *args)
{
    Py_buffer calls;
    PyObject *arrays;
    Py_ssize_t moving, first, last;
    double low, high;
    if (!PyArg_ParseTuple(args, "y*O!nnndd", &calls, &PyTuple_Type, &arrays, &moving, &first, &last, &low, &high))
        return NULL;
    const Call *begin = calls.buf, *end = begin + calls.len / sizeof(Call);
    Py_ssize_t count = PyTuple_GET_SIZE(arrays), t = first, forward = last > first ? 1 : -1;
    char *bases[MAX_ARRAYS];
    npy_int64 strides[MAX_ARRAYS];
    int inside = 1;
    for (Py_ssize_t i = 0; i < count && i < MAX_ARRAYS; i++) {
        PyArrayObject *array = (PyArrayObject *)PyTuple_GET_ITEM(arrays, i);
        bases[i] = PyArray_BYTES(array);
        strides[i] = i < moving ? PyArray_STRIDE(array, 0) : 0;
    }
    Py_BEGIN_ALLOW_THREADS /* the inner loops of floats need nothing of Python, and seeds train in several threads */
    for (; t != last && inside; t += forward)
        for (const Call *call = begin; call < end; call++) {
            char *at[MAX_ARGS];
            for (int i = 0; i < call->args; i++) {
                const Operand *operand = &call->operands[i];
                at[i] = bases[operand->array] + t * strides[operand->array] + operand->offset;
            }
            if (call->loop)
                invoke(call, at);
            else
                inside = (call->data == sizeof(float) ? guard_float : guard_double)(call, at, low, high);
        }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&calls);
    return Py_BuildValue("nO", t, inside ? Py_True : Py_False);
}

static PyObject *loop(PyObject *self, PyObject *args)
{
    PyObject *ufunc;
    int index;
    if (!PyArg_ParseTuple(args, "O!i", &PyUFunc_Type, &ufunc, &index))
        return NULL;
    PyUFuncObject *known = (PyUFuncObject *)ufunc;
    if (index < 0 || index >= known->ntypes) {
        PyErr_SetString(PyExc_IndexError, "no such inner loop");
        return NULL;
    }
    return Py_BuildValue("LL", (long long)(npy_intp)known->functions[index],
                         (long long)(npy_intp)(known->data ? known->data[index] : NULL));
}

static PyObject *layout(PyObject *self, PyObject *arrays)
{
    npy_intp fields[MAX_ARRAYS * (2 * NPY_MAXDIMS + 2)], *field = fields;
    if (!PyTuple_Check(arrays) || PyTuple_GET_SIZE(arrays) > MAX_ARRAYS)
        return PyErr_Format(PyExc_TypeError, "a tuple of at most %d arrays", MAX_ARRAYS);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++) {
        PyArrayObject *array = (PyArrayObject *)PyTuple_GET_ITEM(arrays, i);
        int axes = PyArray_NDIM(array);
        *field++ = axes;
        *field++ = PyArray_TYPE(array);
        for (int axis = 0; axis < axes; axis++) {
            *field++ = axis ? PyArray_DIM(array, axis) : 0;
            *field++ = PyArray_STRIDE(array, axis);
        }
    }
    return PyBytes_FromStringAndSize((char *)fields, (char *)field - (char *)fields);
}

/* The bytes [low, high) that the row t = 0 of an array takes, or all of its rows. */
static void extent(PyArrayObject *array, int whole, npy_intp *low, npy_intp *high)
{
    *low = (npy_intp)PyArray_BYTES(array), *high = *low + PyArray_ITEMSIZE(array);
    for (int axis = whole ? 0 : 1; axis < PyArray_NDIM(array); axis++) {
        npy_intp reach = (PyArray_DIM(array, axis) - 1) * PyArray_STRIDE(array, axis);
        *(reach < 0 ? low : high) += reach;
    }
}

static PyObject *aliasing(PyObject *self, PyObject *arrays)
{
    npy_intp fields[3 * MAX_ARRAYS * MAX_ARRAYS / 2], *field = fields, low[2][MAX_ARRAYS], high[2][MAX_ARRAYS];
    if (!PyTuple_Check(arrays) || PyTuple_GET_SIZE(arrays) > MAX_ARRAYS)
        return PyErr_Format(PyExc_TypeError, "a tuple of at most %d arrays", MAX_ARRAYS);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++) {
        PyArrayObject *one = (PyArrayObject *)PyTuple_GET_ITEM(arrays, i);
        for (int whole = 0; whole < 2; whole++)
            extent(one, whole, &low[whole][i], &high[whole][i]);
        for (Py_ssize_t j = 0; j < i; j++) {
            PyArrayObject *other = (PyArrayObject *)PyTuple_GET_ITEM(arrays, j);
            /* Arrays that move alike lie to each other at every t as they do at t = 0. */
            int whole = PyArray_STRIDE(one, 0) != PyArray_STRIDE(other, 0);
            if (low[whole][i] < high[whole][j] && low[whole][j] < high[whole][i]) {
                *field++ = i, *field++ = j;
                *field++ = PyArray_BYTES(one) - PyArray_BYTES(other);
            }
        }
    }
    return PyBytes_FromStringAndSize((char *)fields, (char *)field - (char *)fields);
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS,
     "run(calls, arrays, moving, first, last, low, high): replays the calls for t = first … towards last, which is left "
     "out, or until a guard has found something outside of low … high. Returns the t after the last one done, and whether "
     "all was inside. The first `moving` arrays move by one row a step."},
    {"loop", loop, METH_VARARGS, "loop(ufunc, index): the addresses of an inner loop and of its data."},
    {"layout", layout, METH_O, "layout(arrays): what a recording depends on, as bytes: types, strides, shapes but for the time axis."},
    {"aliasing", aliasing, METH_O, "aliasing(arrays): which rows of one step overlap, and how far apart they begin, as bytes."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_replay", NULL, 0, methods};

PyMODINIT_FUNC PyInit__replay(void)
{
    import_array();
    import_umath();
    return PyModule_Create(&module);
}
