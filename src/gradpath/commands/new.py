"""``gradpath new``: writes the files of a user's own unit, which is valid without any change."""

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gradpath.commands.arguments import Parser
from gradpath.schema.settings import ConfigError
from gradpath.schema.unit_names import RULE, is_valid

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


class Kind(NamedTuple):
    """The folders of the unit's module and of its YAML file, and the command that tries the
    unit.
    """

    folder: str
    group: str
    command: str


KINDS = {
    "cell": Kind("cells", "cell", "gradpath check --plugin {plugin} cell={name}"),
    "task": Kind("tasks", "task", "gradpath check --plugin {plugin} task={name}"),
    "instrument": Kind(
        "instruments", "instruments", "gradpath run --plugin {plugin} instruments=[{name}] train.steps=9"
    ),
    "figure": Kind("figures", "figures", "gradpath report --plugin {plugin} figures=[{name}]"),
    "optimizer": Kind("optimizers", "optimizer", "gradpath check --plugin {plugin} optimizer={name}"),
    "clipping": Kind("clippings", "clip", "gradpath check --plugin {plugin} clip={name}"),
    "init": Kind("inits", "init", "gradpath check --plugin {plugin} init={name}"),
    "study": Kind("", "experiment", "gradpath run --plugin {plugin} -m +experiment={name}"),
}

HELP = f"""\
usage: gradpath new KIND NAME [--plugin PATH]

  gradpath new cell gers                       cells/gers.py, conf/cell/gers.yaml, tests/test_cell_gers.py
  gradpath new study long --plugin ~/studies   conf/experiment/long.yaml, experiments/long/README.md

KIND is {", ".join(KINDS)}. PATH is the folder with units of your own, the working folder if not
given. What is written works as it is, passes its tests, and says where to change what. Nothing is overwritten.
"""


def new(arguments: list[str]) -> int:
    """Writes the files of a unit and prints what to do next; raises ConfigError where the name is
    not allowed or a file exists already.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    parser = Parser("gradpath new", add_help=False, allow_abbrev=False)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name")
    parser.add_argument("--plugin", default=".")
    chosen = parser.parse_args(arguments)
    root = Path(chosen.plugin).expanduser()
    _check_name(chosen.kind, chosen.name, root)
    files = rendered(chosen.kind, chosen.name, chosen.plugin)
    _create(root, files)
    for file in files:
        print(f"wrote {root / file}")
    tests = next((file for file in files if file.parts[0] == "tests"), None)
    print("next:")
    print("  " + KINDS[chosen.kind].command.format(plugin=shlex.quote(chosen.plugin), name=chosen.name))
    if tests:
        print(f"  pytest {shlex.quote(str(root / tests))}")
    return 0


def _check_name(kind: str, name: str, root: Path) -> None:
    from gradpath.commands.choices import options
    from gradpath.schema import plugins

    if not is_valid(name):
        raise ConfigError(f"{name}: the name of a {kind} must {RULE}")
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--plugin {root}: is not a folder")
    if any((root / folder).is_dir() for folder in (*plugins.FOLDERS, "conf")):
        plugins.add_plugin(str(root))
    taken = options(KINDS[kind].group)
    if name in taken:
        raise ConfigError(f"{KINDS[kind].group}={name}: there is a {kind} of that name already")


def rendered(kind: str, name: str, plugin: str = ".") -> dict[Path, str]:
    """The contents of a unit's files, by path in the plugin."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES / kind),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    folder, group, _ = KINDS[kind]
    places = {"conf.yaml": Path("conf", group, f"{name}.yaml")}
    if kind == "study":
        places["README.md"] = Path("experiments", name, "README.md")
    else:
        places = {"unit.py": Path(folder, f"{name}.py"), **places, "test.py": Path("tests", f"test_{kind}_{name}.py")}
    words = {
        "name": name,
        "cls": _class_name(name, kind),
        "words": name.replace("_", " "),
        "plugin": f"--plugin {shlex.quote(plugin)} ",
    }
    return {place: environment.get_template(f"{template}.jinja").render(words) for template, place in places.items()}


def _class_name(name: str, kind: str) -> str:
    """``my_cell`` → ``MyCell``, but different from all names that a template imports."""
    camel = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    template = TEMPLATES / kind / "unit.py.jinja"
    imported = template.read_text(encoding="utf-8") if template.exists() else ""
    return f"{camel}Unit" if re.search(rf"\b{camel}\b", imported) else camel


def _create(root: Path, files: dict[Path, str]) -> None:
    """Writes all files or none; raises ConfigError, and changes no existing file."""
    for file in files:
        if (root / file).exists() or (root / file).is_symlink():
            raise ConfigError(f"{root / file}: is there already; nothing is overwritten")
    written: list[Path] = []
    created: list[Path] = []
    try:
        for file, text in files.items():
            folder = (root / file).parent
            created += [parent for parent in (folder, *folder.parents) if not parent.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            with (root / file).open("x", encoding="utf-8") as stream:
                written.append(root / file)
                stream.write(text)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"{error.filename or root}: cannot be written: {error.strerror}") from error
        raise
