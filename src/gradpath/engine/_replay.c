/* Replays the NumPy calls of one timestep for many timesteps, without Python in between: see
 * replay.py, and recording.py, which takes note of them. The inner loops called here are NumPy's
 * own, so that every bit is what NumPy gives.
 *
 * Nothing that Python hands over is believed. `record` looks at every field once, and makes of them
 * an object that only it can make; `run` then compares the arrays with those of the recording, and
 * the bytes that will be touched with the memory that they lie in, once for all timesteps. What is
 * wrong raises and leaves the arrays as they were.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION /* runs on 2.0 and later, whichever it is built against */
#include <stdint.h>
#include <string.h>
#include <numpy/ndarraytypes.h>
#include <numpy/ufuncobject.h>

enum { MAX_ARGS = 4, MAX_OUTER = 3, MAX_CORE = 3, MAX_STEPS = 3 * MAX_ARGS, MAX_ARRAYS = 64 };
enum { MAX_FIELDS = 4 + 2 * NPY_MAXDIMS };
#define LIMIT ((npy_int64)1 << 56) /* of sizes and distances: sums of some of them stay within 64 bits */

_Static_assert(sizeof(npy_intp) == sizeof(npy_int64), "addresses of 64 bits");

/* Where an argument lies: in array `array`, `offset` bytes from its row; and how far it moves in
 * each outer loop.
 */
typedef struct {
    npy_int64 array, offset, outer[MAX_OUTER];
} Operand;

/* One call, as recording.py packs it into int64: the `index` of a ufunc's inner loop, with its
 * `dims` and `steps`, for each outer index; or, without a ufunc, a guard over (outer[0], outer[1])
 * rows of dims[0] elements.
 */
typedef struct {
    npy_int64 index, args, outer[MAX_OUTER], dims[1 + MAX_CORE], steps[MAX_STEPS];
    Operand operands[MAX_ARGS];
} Fields;

typedef struct {
    PyUFuncGenericFunction loop;
    void *data;
    int type;
    Fields is;
} Call;

/* The memory that an array lies in, which can be neither freed nor resized while it is held. */
typedef struct {
    uintptr_t start;
    npy_int64 size;
    PyObject *weak;
    Py_buffer view;
} Memory;

/* One array of a step: where its row was when it was recorded, how far the next one is, and what
 * the calls touch of it, in bytes from the beginning of its row.
 */
typedef struct {
    uintptr_t start;
    npy_int64 stride, low, high;
    int type, touched, written;
    npy_uint64 beside; /* the arrays, a bit each, that its row shared memory with */
} Array;

_Static_assert(MAX_ARRAYS <= 64, "a bit for each array");

typedef struct {
    PyObject_HEAD
    PyObject *ufuncs, *kept, *layout;
    Call *calls;
    Py_ssize_t length, moving, count;
    Array arrays[MAX_ARRAYS];
    int running;
} Recording;

static PyObject *unproved, *matmul, *vecdot;

static void invoke(const Call *call, char *const *at)
{
    char *args[MAX_ARGS];
    npy_intp dims[1 + MAX_CORE];
    for (npy_int64 i = 0; i < call->is.outer[0]; i++)
        for (npy_int64 j = 0; j < call->is.outer[1]; j++)
            for (npy_int64 k = 0; k < call->is.outer[2]; k++) {
                for (int a = 0; a < call->is.args; a++) {
                    const npy_int64 *outer = call->is.operands[a].outer;
                    args[a] = at[a] + i * outer[0] + j * outer[1] + k * outer[2];
                }
                memcpy(dims, call->is.dims, sizeof dims);
                call->loop(args, dims, (const npy_intp *)call->is.steps, call->data);
            }
}

/* Is the largest |x| of every row, over all arguments, 0 or in [low, high]? Compared as integers,
 * whose order is that of non-negative floats, and whose maximum the compiler vectorises. A NaN
 * counts as outside.
 */
#define DEFINE_GUARD(NAME, TYPE, BITS, WITHOUT_SIGN)                                                                  \
    static int NAME(const Call *call, char *const *at, double lower, double upper)                                    \
    {                                                                                                                 \
        TYPE bounds[2] = {(TYPE)lower, (TYPE)upper};                                                                  \
        BITS low, high;                                                                                               \
        memcpy(&low, &bounds[0], sizeof low);                                                                         \
        memcpy(&high, &bounds[1], sizeof high);                                                                       \
        for (npy_int64 i = 0; i < call->is.outer[0]; i++)                                                             \
            for (npy_int64 j = 0; j < call->is.outer[1]; j++) {                                                       \
                BITS largest = 0;                                                                                     \
                for (int a = 0; a < call->is.args; a++) {                                                             \
                    const npy_int64 *outer = call->is.operands[a].outer;                                              \
                    const char *x = at[a] + i * outer[0] + j * outer[1];                                              \
                    for (npy_int64 k = 0; k < call->is.dims[0]; k++) {                                                \
                        BITS size;                                                                                    \
                        memcpy(&size, x + k * (npy_int64)sizeof size, sizeof size);                                   \
                        size &= WITHOUT_SIGN;                                                                         \
                        largest = size > largest ? size : largest;                                                    \
                    }                                                                                                 \
                }                                                                                                     \
                if (largest > high || (largest < low && largest))                                                     \
                    return 0;                                                                                         \
            }                                                                                                         \
        return 1;                                                                                                     \
    }
DEFINE_GUARD(guard_float, float, npy_int32, NPY_MAX_INT32)
DEFINE_GUARD(guard_double, double, npy_int64, NPY_MAX_INT64)

/* What a recording depends on of an array: its type, strides and shape but for the time axis. */
static npy_intp *describe(PyArrayObject *array, npy_intp *field)
{
    int axes = PyArray_NDIM(array);
    *field++ = axes;
    *field++ = PyArray_TYPE(array);
    *field++ = PyArray_ITEMSIZE(array);
    *field++ = PyArray_ISBEHAVED_RO(array); /* aligned, and in the byte order of this machine */
    for (int axis = 0; axis < axes; axis++) {
        *field++ = axis ? PyArray_DIM(array, axis) : 0;
        *field++ = PyArray_STRIDE(array, axis);
    }
    return field;
}

static int are_arrays(PyObject *arrays, const char *name)
{
    if (!PyTuple_Check(arrays) || PyTuple_GET_SIZE(arrays) > MAX_ARRAYS) {
        PyErr_Format(PyExc_TypeError, "%s: must be a tuple of at most %d arrays", name, MAX_ARRAYS);
        return 0;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++)
        if (!PyArray_Check(PyTuple_GET_ITEM(arrays, i))) {
            PyErr_Format(PyExc_TypeError, "%s[%zd]: must be an array, not %.100s", name, i,
                         Py_TYPE(PyTuple_GET_ITEM(arrays, i))->tp_name);
            return 0;
        }
    return 1;
}

static PyObject *layout(PyObject *self, PyObject *arrays)
{
    npy_intp fields[MAX_FIELDS];
    if (!are_arrays(arrays, "arrays"))
        return NULL;
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++)
        size += 4 + 2 * PyArray_NDIM((PyArrayObject *)PyTuple_GET_ITEM(arrays, i));
    PyObject *found = PyBytes_FromStringAndSize(NULL, size * (Py_ssize_t)sizeof *fields);
    if (!found)
        return NULL;
    char *at = PyBytes_AS_STRING(found);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++) {
        size_t length = (size_t)(describe((PyArrayObject *)PyTuple_GET_ITEM(arrays, i), fields) - fields);
        memcpy(at, fields, length * sizeof *fields);
        at += length * sizeof *fields;
    }
    return found;
}

static void let_go(Memory *memory)
{
    Py_CLEAR(memory->weak);
    if (memory->view.obj)
        PyBuffer_Release(&memory->view);
}

/* Finds the memory of an array that is at its owner's, and holds it: an array to which there is a
 * weak reference does not resize, nor does what has handed out its buffer.
 */
static int hold(PyArrayObject *array, Memory *memory, Py_ssize_t index)
{
    PyArrayObject *owner = array;
    PyObject *base = NULL;
    while (!PyArray_CHKFLAGS(owner, NPY_ARRAY_OWNDATA) && (base = PyArray_BASE(owner)) && PyArray_Check(base))
        owner = (PyArrayObject *)base;
    if (PyArray_CHKFLAGS(owner, NPY_ARRAY_OWNDATA)) {
        memory->weak = PyWeakref_NewRef((PyObject *)owner, NULL);
        memory->start = (uintptr_t)PyArray_BYTES(owner);
        memory->size = PyArray_NBYTES(owner);
        return memory->weak != NULL;
    }
    if (base && PyObject_CheckBuffer(base) && PyObject_GetBuffer(base, &memory->view, PyBUF_SIMPLE) == 0) {
        memory->start = (uintptr_t)memory->view.buf;
        memory->size = memory->view.len;
        return 1;
    }
    PyErr_Clear();
    PyErr_Format(unproved, "arrays[%zd]: memory of unknown size, of %.100s", index, base ? Py_TYPE(base)->tp_name : "nobody");
    return 0;
}

/* Adds to low … high how far `size` steps of `move` bytes reach. */
static int reach(npy_int64 size, npy_int64 move, npy_int64 *low, npy_int64 *high)
{
    if (size <= 1 || move == 0)
        return 1;
    if (size > LIMIT || move > LIMIT || move < -LIMIT || (move < 0 ? -move : move) > LIMIT / (size - 1))
        return 0;
    *(move < 0 ? low : high) += move * (size - 1);
    return *low >= -LIMIT && *high <= LIMIT;
}

/* What a call touches of its argument `a`; the core dimensions of a ufunc are those of its
 * signature. Of the loops, outer, inner and core, sets a bit in `moved` for those in which the
 * argument moves.
 */
static int touched(const Fields *call, const PyUFuncObject *ufunc, int a, npy_int64 item, npy_int64 *low, npy_int64 *high,
                   unsigned *moved)
{
    const Operand *operand = &call->operands[a];
    npy_int64 sizes[MAX_OUTER + 1 + MAX_CORE], moves[MAX_OUTER + 1 + MAX_CORE];
    int bits[MAX_OUTER + 1 + MAX_CORE], loops = 0, within = 1, empty = 0;
    for (; loops < MAX_OUTER; loops++)
        sizes[loops] = call->outer[loops], moves[loops] = operand->outer[loops], bits[loops] = loops;
    sizes[loops] = call->dims[0], moves[loops] = ufunc ? call->steps[a] : item, bits[loops] = loops;
    loops++;
    if (ufunc && ufunc->core_enabled) {
        int step = ufunc->nargs;
        for (int before = 0; before < a; before++)
            step += ufunc->core_num_dims[before];
        for (int i = 0; i < ufunc->core_num_dims[a]; i++, loops++) {
            int dim = 1 + ufunc->core_dim_ixs[ufunc->core_offsets[a] + i];
            sizes[loops] = call->dims[dim], moves[loops] = call->steps[step + i], bits[loops] = MAX_OUTER + dim;
        }
    }
    if (operand->offset < -LIMIT || operand->offset > LIMIT || operand->offset % item)
        return 0;
    *low = *high = operand->offset;
    for (int i = 0; i < loops; i++) {
        within = within && reach(sizes[i], moves[i], low, high) && moves[i] % item == 0;
        empty |= sizes[i] == 0;
        *moved |= (unsigned)(moves[i] != 0) << bits[i];
    }
    *high = empty ? *low : *high + item;
    return within;
}

static const char *wrong_call(Recording *of, Call *call, PyObject *ufunc_or_none)
{
    Fields *is = &call->is;
    PyUFuncObject *ufunc = NULL;
    unsigned moved = 0;
    if (is->args < 1 || is->args > MAX_ARGS)
        return "number of arguments";
    for (int i = 0; i < MAX_OUTER; i++)
        if (is->outer[i] < 0 || is->outer[i] > LIMIT)
            return "size of an outer loop";
    for (int i = 0; i <= MAX_CORE; i++)
        if (is->dims[i] < 0 || is->dims[i] > LIMIT)
            return "dimension";
    for (int a = 0; a < is->args; a++)
        if (is->operands[a].array < 0 || is->operands[a].array >= of->count)
            return "array";
    call->type = of->arrays[is->operands[0].array].type;
    if (call->type != NPY_FLOAT && call->type != NPY_DOUBLE)
        return "type";
    if (ufunc_or_none == Py_None) {
        if (is->outer[2] != 1)
            return "size of an outer loop";
    }
    else {
        if (!PyObject_TypeCheck(ufunc_or_none, &PyUFunc_Type))
            return "ufunc";
        ufunc = (PyUFuncObject *)ufunc_or_none;
        if (ufunc->core_enabled && ufunc_or_none != matmul && ufunc_or_none != vecdot)
            return "generalised ufunc";
        if (is->index < 0 || is->index >= ufunc->ntypes || !ufunc->functions || !ufunc->functions[is->index])
            return "inner loop";
        if (is->args != ufunc->nargs)
            return "number of arguments";
        for (int a = 0; a < ufunc->nargs; a++)
            if (ufunc->types[is->index * ufunc->nargs + a] != call->type)
                return "type";
        call->loop = ufunc->functions[is->index];
        call->data = ufunc->data ? (void *)ufunc->data[is->index] : NULL;
    }
    for (int a = 0; a < is->args; a++) {
        Array *array = &of->arrays[is->operands[a].array];
        npy_int64 low, high;
        if (array->type != call->type)
            return "type";
        if (!touched(is, ufunc, a, call->type == NPY_FLOAT ? sizeof(npy_float) : sizeof(npy_double), &low, &high, &moved))
            return "offset or stride";
        if (low == high)
            continue;
        array->low = array->touched && array->low < low ? array->low : low;
        array->high = array->touched && array->high > high ? array->high : high;
        array->touched = 1;
        array->written |= ufunc && a >= ufunc->nin;
    }
    int core = ufunc && ufunc->core_enabled ? ufunc->core_num_dim_ix : 0;
    for (int i = 0; i < MAX_OUTER + 1 + core; i++) /* then the memory bounds the sizes */
        if ((i < MAX_OUTER ? is->outer[i] : is->dims[i - MAX_OUTER]) > 1 && !(moved >> i & 1))
            return "loop in which an argument moves";
    return NULL;
}

/* The bytes of an array's row, or without a time axis of all of it; none, low = high, where one
 * axis has no length.
 */
static int row(PyArrayObject *array, int moves, npy_int64 *low, npy_int64 *high)
{
    int within = 1, empty = 0;
    *low = *high = 0;
    for (int axis = moves; axis < PyArray_NDIM(array); axis++) {
        empty |= PyArray_DIM(array, axis) == 0;
        within &= reach(PyArray_DIM(array, axis), PyArray_STRIDE(array, axis), low, high);
    }
    *high = empty ? *low : *high + PyArray_ITEMSIZE(array);
    return within;
}

static int in_memory(PyArrayObject *array, const Memory *memory, npy_int64 low, npy_int64 high)
{
    npy_int64 from = (npy_int64)((uintptr_t)PyArray_BYTES(array) - memory->start);
    return from >= -LIMIT && from <= LIMIT && from + low >= 0 && from + high <= memory->size;
}

static void forget(Recording *self)
{
    Py_CLEAR(self->ufuncs);
    Py_CLEAR(self->kept);
    Py_CLEAR(self->layout);
    PyMem_Free(self->calls);
    PyObject_Free(self);
}

static Py_ssize_t length(Recording *self)
{
    return self->length;
}

/* Copies, which nobody else can change. */
static PyObject *copies(PyObject *arrays)
{
    PyObject *found = PyTuple_New(PyTuple_GET_SIZE(arrays));
    for (Py_ssize_t i = 0; found && i < PyTuple_GET_SIZE(arrays); i++) {
        PyObject *copy = PyArray_NewCopy((PyArrayObject *)PyTuple_GET_ITEM(arrays, i), NPY_KEEPORDER);
        if (!copy)
            Py_CLEAR(found);
        else
            PyTuple_SET_ITEM(found, i, copy);
    }
    return found;
}

/* For copy.deepcopy: the same calls, in memory of its own. */
static PyObject *deepcopy(Recording *self, PyObject *memo)
{
    Recording *made = PyObject_New(Recording, Py_TYPE(self));
    if (!made)
        return NULL;
    memcpy((char *)made + sizeof(PyObject), (char *)self + sizeof(PyObject), sizeof *self - sizeof(PyObject));
    Py_INCREF(made->ufuncs);
    Py_INCREF(made->layout);
    made->running = 0;
    made->kept = copies(self->kept);
    made->calls = PyMem_Calloc((size_t)self->length, sizeof(Call));
    if (made->calls)
        memcpy(made->calls, self->calls, (size_t)self->length * sizeof(Call));
    else
        PyErr_NoMemory();
    if (!made->calls || !made->kept)
        Py_CLEAR(made);
    return (PyObject *)made;
}

static PyMethodDef methods_of_recording[] = {
    {"__deepcopy__", (PyCFunction)deepcopy, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods as_sequence = {.sq_length = (lenfunc)length};

static PyTypeObject RecordingType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gradpath.engine._replay.Recording",
    .tp_basicsize = sizeof(Recording),
    .tp_dealloc = (destructor)forget,
    .tp_as_sequence = &as_sequence,
    .tp_methods = methods_of_recording,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "The calls of one timestep, as `record` has checked them; its length is their number.",
};

static PyArrayObject *array_of(const Recording *of, PyObject *arrays, Py_ssize_t i)
{
    return (PyArrayObject *)(i < of->moving ? PyTuple_GET_ITEM(arrays, i) : PyTuple_GET_ITEM(of->kept, i - of->moving));
}

/* Fills in the recording of step t; 0 with an exception set where something is wrong. */
static int fill(Recording *self, PyObject *arrays, Py_ssize_t t, const Fields *fields)
{
    npy_int64 lows[MAX_ARRAYS], highs[MAX_ARRAYS];
    uintptr_t starts[MAX_ARRAYS];
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Array *is = &self->arrays[i];
        int moves = i < self->moving;
        PyArrayObject *array = array_of(self, arrays, i);
        int floats = PyArray_TYPE(array) == NPY_FLOAT || PyArray_TYPE(array) == NPY_DOUBLE;
        is->type = floats && PyArray_ISBEHAVED_RO(array) ? PyArray_TYPE(array) : -1;
        if (moves && (PyArray_NDIM(array) == 0 || t < 0 || t >= PyArray_DIM(array, 0))) {
            PyErr_Format(PyExc_IndexError, "arrays[%zd]: has no step %zd", i, t);
            return 0;
        }
        is->start = (uintptr_t)PyArray_BYTES(array);
        is->stride = moves ? PyArray_STRIDE(array, 0) : 0;
        starts[i] = is->start + (uintptr_t)t * (uintptr_t)is->stride;
        if (!row(array, moves, &lows[i], &highs[i])) {
            PyErr_Format(PyExc_ValueError, "arrays[%zd]: too large", i);
            return 0;
        }
    }
    for (Py_ssize_t i = 0; i < self->length; i++) {
        self->calls[i].is = fields[i];
        const char *wrong = wrong_call(self, &self->calls[i], PyTuple_GET_ITEM(self->ufuncs, i));
        if (wrong) {
            PyErr_Format(PyExc_ValueError, "calls[%zd]: no such %s", i, wrong);
            return 0;
        }
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Array *is = &self->arrays[i];
        if (is->touched && (is->low < lows[i] || is->high > highs[i])) {
            PyErr_Format(PyExc_ValueError, "arrays[%zd]: the calls leave its row", i);
            return 0;
        }
        if (is->written && !PyArray_ISWRITEABLE(array_of(self, arrays, i))) {
            PyErr_Format(PyExc_ValueError, "arrays[%zd]: read-only", i);
            return 0;
        }
        for (Py_ssize_t j = 0; j < i && i < self->moving; j++) {
            if (starts[i] + (uintptr_t)highs[i] <= starts[j] + (uintptr_t)lows[j] ||
                starts[j] + (uintptr_t)highs[j] <= starts[i] + (uintptr_t)lows[i])
                continue;
            if (is->stride != self->arrays[j].stride) {
                PyErr_Format(unproved, "arrays[%zd], arrays[%zd]: move on differently in the same memory", j, i);
                return 0;
            }
            is->beside |= (npy_uint64)1 << j;
        }
    }
    return 1;
}

/* An index, or an exception; without an OverflowError, which would be a third kind beside type and
 * range.
 */
static int is_index(PyObject *given, Py_ssize_t *index)
{
    *index = PyNumber_AsSsize_t(given, PyExc_IndexError);
    return !(*index == -1 && PyErr_Occurred());
}

static int is_float(PyObject *given, double *number)
{
    *number = PyFloat_AsDouble(given);
    if (*number == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_SetString(PyExc_ValueError, "low, high: too large");
        return 0;
    }
    return 1;
}

static PyObject *record(PyObject *module, PyObject *args)
{
    PyObject *ufuncs, *given, *arrays, *step, *kept;
    Py_buffer calls;
    Py_ssize_t t;
    if (!PyArg_ParseTuple(args, "O!OOOO", &PyTuple_Type, &ufuncs, &given, &arrays, &step, &kept))
        return NULL;
    if (!is_index(step, &t) || !are_arrays(arrays, "arrays") || !are_arrays(kept, "kept"))
        return NULL;
    if (PyTuple_GET_SIZE(arrays) == 0 || PyTuple_GET_SIZE(arrays) + PyTuple_GET_SIZE(kept) > MAX_ARRAYS)
        return PyErr_Format(PyExc_ValueError, "arrays, kept: must be 1 to %d together, and one of them move", MAX_ARRAYS);
    if (PyObject_GetBuffer(given, &calls, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        PyErr_Clear();
        return PyErr_Format(PyExc_TypeError, "calls: must be a contiguous array of int64, not %.100s", Py_TYPE(given)->tp_name);
    }
    Recording *self = NULL;
    if (calls.itemsize != sizeof(npy_int64) || !calls.format || !strchr("lq", calls.format[0]) || calls.format[1])
        PyErr_SetString(PyExc_TypeError, "calls: must be a contiguous array of int64");
    else if (PyTuple_GET_SIZE(ufuncs) == 0 || calls.len != PyTuple_GET_SIZE(ufuncs) * (Py_ssize_t)sizeof(Fields))
        PyErr_Format(PyExc_ValueError, "calls: must be %zd int64 for each of 1 or more ufuncs",
                     (Py_ssize_t)(sizeof(Fields) / sizeof(npy_int64)));
    else
        self = PyObject_New(Recording, &RecordingType);
    if (self) {
        memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
        self->ufuncs = Py_NewRef(ufuncs);
        self->kept = copies(kept);
        self->length = PyTuple_GET_SIZE(ufuncs);
        self->moving = PyTuple_GET_SIZE(arrays);
        self->count = self->moving + PyTuple_GET_SIZE(kept);
        self->layout = layout(module, arrays);
        self->calls = PyMem_Calloc((size_t)self->length, sizeof(Call));
        if (!self->calls)
            PyErr_NoMemory();
        if (!self->calls || !self->layout || !self->kept || !fill(self, arrays, t, calls.buf))
            Py_CLEAR(self);
    }
    PyBuffer_Release(&calls);
    return (PyObject *)self;
}

/* Compares the arrays with those of the recording, and what t = `from` … `to` touch with their
 * memory, which is held.
 */
static int proved(const Recording *of, PyObject *arrays, npy_int64 from, npy_int64 to, Memory *memory)
{
    npy_intp fields[MAX_FIELDS];
    npy_int64 lows[MAX_ARRAYS], highs[MAX_ARRAYS];
    uintptr_t starts[MAX_ARRAYS];
    const char *layout = PyBytes_AS_STRING(of->layout);
    for (Py_ssize_t i = 0; i < of->moving; i++) /* all of them, before one is looked at: it may run code */
        if (of->arrays[i].touched && !hold((PyArrayObject *)PyTuple_GET_ITEM(arrays, i), &memory[i], i))
            return 0;
    for (Py_ssize_t i = 0; i < of->moving; i++) {
        PyArrayObject *array = (PyArrayObject *)PyTuple_GET_ITEM(arrays, i);
        const Array *is = &of->arrays[i];
        size_t size = (size_t)((char *)describe(array, fields) - (char *)fields);
        if (memcmp(layout, fields, sizeof *fields) || memcmp(layout, fields, size)) {
            PyErr_Format(PyExc_ValueError, "arrays[%zd]: not the type, shape and strides that were recorded", i);
            return 0;
        }
        layout += size;
        if (to >= PyArray_DIM(array, 0)) {
            PyErr_Format(PyExc_IndexError, "arrays[%zd]: has no step %lld, but %zd", i, (long long)to, PyArray_DIM(array, 0));
            return 0;
        }
        starts[i] = (uintptr_t)PyArray_BYTES(array);
        if (!is->touched)
            continue;
        if (is->written && !PyArray_ISWRITEABLE(array)) {
            PyErr_Format(PyExc_ValueError, "arrays[%zd]: read-only", i);
            return 0;
        }
        npy_int64 first = 0, last = 0; /* bytes from the array to its outermost rows */
        int known = reach(to + 1, is->stride, &first, &last);
        if (known)
            *(is->stride < 0 ? &last : &first) = is->stride * from;
        lows[i] = first + is->low;
        highs[i] = last + is->high;
        if (!known || !in_memory(array, &memory[i], lows[i], highs[i])) {
            PyErr_Format(PyExc_ValueError, "arrays[%zd]: not within its own memory", i);
            return 0;
        }
    }
    for (Py_ssize_t i = 0; i < of->moving; i++)
        for (Py_ssize_t j = 0; j < i; j++) {
            const Array *one = &of->arrays[i], *other = &of->arrays[j];
            int beside = one->beside >> j & 1, matters = one->touched && other->touched && (one->written || other->written);
            if (!beside && (!matters || starts[i] + (uintptr_t)highs[i] <= starts[j] + (uintptr_t)lows[j] ||
                            starts[j] + (uintptr_t)highs[j] <= starts[i] + (uintptr_t)lows[i]))
                continue;
            if (one->stride != other->stride || starts[i] - starts[j] != one->start - other->start) {
                PyErr_Format(unproved, "arrays[%zd], arrays[%zd]: share memory otherwise than when recorded", j, i);
                return 0;
            }
        }
    return 1;
}

/* The loop itself; returns the t after the last step done. */
static npy_int64 go(const Recording *of, PyObject *arrays, npy_int64 first, npy_int64 last, double low, double high,
                    int *inside)
{
    char *bases[MAX_ARRAYS];
    npy_int64 strides[MAX_ARRAYS], t = first, forward = last > first ? 1 : -1;
    const Call *begin = of->calls, *end = begin + of->length;
    for (Py_ssize_t i = 0; i < of->count; i++) {
        bases[i] = PyArray_BYTES(array_of(of, arrays, i));
        strides[i] = of->arrays[i].stride;
    }
    Py_BEGIN_ALLOW_THREADS /* the inner loops of floats need nothing of Python, and seeds train in several threads */
    for (; t != last && *inside; t += forward)
        for (const Call *call = begin; call < end; call++) {
            char *at[MAX_ARGS];
            for (int i = 0; i < call->is.args; i++) {
                const Operand *operand = &call->is.operands[i];
                at[i] = bases[operand->array] + t * strides[operand->array] + operand->offset;
            }
            if (call->loop)
                invoke(call, at);
            else
                *inside = (call->type == NPY_FLOAT ? guard_float : guard_double)(call, at, low, high);
        }
    Py_END_ALLOW_THREADS
    return t;
}

static PyObject *run(PyObject *module, PyObject *args)
{
    PyObject *arrays, *given[4];
    Recording *of;
    Py_ssize_t first, last;
    double low, high;
    if (!PyArg_ParseTuple(args, "O!OOOOO", &RecordingType, &of, &arrays, &given[0], &given[1], &given[2], &given[3]))
        return NULL;
    if (!is_index(given[0], &first) || !is_index(given[1], &last) || !is_float(given[2], &low) ||
        !is_float(given[3], &high) || !are_arrays(arrays, "arrays"))
        return NULL;
    if (PyTuple_GET_SIZE(arrays) != of->moving)
        return PyErr_Format(PyExc_ValueError, "arrays: must be the %zd that were recorded, not %zd", of->moving,
                            PyTuple_GET_SIZE(arrays));
    if (!(0 <= low && low <= high))
        return PyErr_Format(PyExc_ValueError, "low, high: must be 0 ≤ low ≤ high");
    if (first < (last > first ? 0 : -1) || last < -1)
        return PyErr_Format(PyExc_IndexError, "first, last: there is no step %zd", first < last ? first : last);
    if (first == last)
        return Py_BuildValue("nO", first, Py_True);
    if (of->running)
        return PyErr_Format(PyExc_ValueError, "recording: another thread is running it, in the same memory");
    int inside = 1;
    npy_int64 reached = first;
    Memory memory[MAX_ARRAYS];
    memset(memory, 0, (size_t)of->moving * sizeof *memory);
    of->running = 1;
    int fine = proved(of, arrays, first < last ? first : last + 1, first < last ? last - 1 : first, memory);
    if (fine)
        reached = go(of, arrays, first, last, low, high, &inside);
    of->running = 0;
    for (Py_ssize_t i = 0; i < of->moving; i++)
        let_go(&memory[i]);
    return fine ? Py_BuildValue("LO", (long long)reached, inside ? Py_True : Py_False) : NULL;
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
    {"record", record, METH_VARARGS,
     "record(ufuncs, calls, arrays, t, kept): the Recording of the calls of step t, each a ufunc and its row of `calls`, int64 as "
     "recording.py packs them; a guard has None for a ufunc. `arrays` have a time axis in front, `kept` have none."},
    {"run", run, METH_VARARGS,
     "run(recording, arrays, first, last, low, high): replays the calls for t = first … towards last, which is left out, "
     "or until a guard has found something outside of low … high. Returns the t after the last one done, and whether all "
     "was inside. Raises UnprovedError, before anything is done, for arrays that NumPy takes and a recording cannot: "
     "those that overlap as they did not when recorded, or whose memory nobody knows."},
    {"layout", layout, METH_O, "layout(arrays): what a recording depends on, as bytes: types, strides, shapes but for the time axis."},
    {"aliasing", aliasing, METH_O, "aliasing(arrays): which rows of one step overlap, and how far apart they begin, as bytes."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_replay", NULL, -1, methods};

PyMODINIT_FUNC PyInit__replay(void)
{
    import_array();
    import_umath();
    PyObject *numpy = PyImport_ImportModule("numpy");
    matmul = numpy ? PyObject_GetAttrString(numpy, "matmul") : NULL;
    vecdot = numpy ? PyObject_GetAttrString(numpy, "vecdot") : NULL;
    Py_XDECREF(numpy);
    if (!matmul || !vecdot || PyType_Ready(&RecordingType))
        return NULL;
    unproved = PyErr_NewException("gradpath.engine._replay.UnprovedError", PyExc_ValueError, NULL);
    PyObject *module = PyModule_Create(&definition);
    if (!unproved || !module || PyModule_AddObjectRef(module, "UnprovedError", unproved))
        return NULL;
    return module;
}
