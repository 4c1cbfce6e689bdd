"""What an sdist and a wheel hold, by hatchling's own lists, and that every file says the same
version; `make test-wheel` builds and uses them.
"""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
hatchling = pytest.importorskip("hatchling.builders.wheel")
FILES = [path for pattern in ("*.py", "*.jinja", "py.typed") for path in (ROOT / "src").rglob(pattern)]
SOURCES = {path.relative_to(ROOT / "src").as_posix() for path in FILES}
CONF = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}


def included(builder) -> set[str]:
    """Paths inside what it would build."""
    build_data = builder.get_default_build_data()
    builder.set_build_data_defaults(build_data)
    with builder.config.set_build_data(build_data):
        return {Path(file.distribution_path).as_posix() for file in builder.recurse_included_files()}


def test_a_wheel_holds_the_package_and_the_configuration_and_nothing_else() -> None:
    paths = included(hatchling.WheelBuilder(str(ROOT)))
    assert paths == SOURCES | {f"gradpath/{path}" for path in CONF}  # the build hook adds the compiled loop


def test_an_sdist_holds_what_a_wheel_is_built_from() -> None:
    from hatchling.builders.sdist import SdistBuilder

    paths = {path.removeprefix("src/") for path in included(SdistBuilder(str(ROOT)))}
    needed = {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "gradpath/engine/_replay.c"}
    assert paths == SOURCES | CONF | needed | {"CHANGELOG.md", "CITATION.cff", ".gitignore"}


def test_every_file_says_the_same_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", version)
    assert re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version
    assert f"gradpath-{version}-" in (ROOT / "README.md").read_text()
