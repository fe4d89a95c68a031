"""The start of a method of one's own: a plug-in package that works as it stands (`python -m bench new-method`)."""

from __future__ import annotations

import enum
import keyword
import re
import shlex
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.errors import UsageError

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"(?=.{1,40}$)[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_PLACEHOLDERS = re.compile(r"my-method|my_method|MyMethod|, KNOBS|COMMANDS")


class Kind(enum.StrEnum):
    """What a new method starts as."""

    PROMPT = "prompt"
    """Past reviews in the prompt; nothing is learned."""
    SOFT = "soft"
    """Soft vectors that the shared training loop learns."""
    ADAPTER = "adapter"
    """A LoRA adapter: a class on top of `lora`."""


@dataclass(frozen=True)
class NewMethod:
    """A method that is about to be started, under names that are free."""

    name: str
    """In the registry: `my-method`."""
    module: str
    """`my_method`."""
    class_name: str
    """`MyMethod`."""
    kind: Kind
    folder: Path
    """The package's folder."""

    def files(self) -> dict[str, str]:
        """File name -> text."""
        texts = {
            f"{self.module}.py": f"{self.kind.value}.py",
            f"test_{self.module}.py": "test_method.py",
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
        }
        return {name: self._filled(_template(template)) for name, template in texts.items()}

    def commands(self, inside: bool = True) -> list[str]:
        """What to do next, within the folder or where it was made."""
        learns = self.kind is not Kind.PROMPT
        fast = " --set epochs=1" if learns else ""
        quick = f" --train-limit 16 --set {self.name}.epochs=1 --set {self.name}.lr=1e-3" if learns else ""
        if inside:
            target = f"{self.module}:{self.class_name}"
            first = [f"python -m bench check {target}{fast}", "python -m pip install -e ."]
        else:
            folder = shlex.quote(str(self.folder))
            first = [f"python -m pip install --no-deps -e {folder}", f"python -m bench check {self.name}{fast}"]
        return [
            *first,
            f"python -m bench run --methods nonperso,rag,{self.name} --limit 8{quick}",
            "python -m bench table",
        ]

    def _filled(self, text: str) -> str:
        """A template with the names in place, all at once, so that no name can change another one."""
        values = {
            "my-method": self.name,
            "my_method": self.module,
            "MyMethod": self.class_name,
            ", KNOBS": "" if self.kind is Kind.PROMPT else ", epochs=1",
            "COMMANDS": "\n".join(self.commands()),
        }
        return _PLACEHOLDERS.sub(lambda found: values[found[0]], text)


def new_method(name: str, kind: Kind, into: Path) -> NewMethod:
    """Writes the package `into`/`name`, all of it or nothing.

    Raises UsageError for a name that cannot be used or is taken, and where the folder cannot be made.
    """
    new = _checked(name, kind, into)
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=into) as beside:
            made = Path(beside) / name
            made.mkdir()
            for file, text in new.files().items():
                (made / file).write_text(text, encoding="utf-8", newline="\n")
            made.rename(new.folder)
    except OSError as error:
        raise UsageError(f"cannot write {new.folder}: {error.strerror}; choose another folder with --into") from error
    return new


def told(new: NewMethod) -> str:
    """What was written and what to do next, for people."""
    meanings = ("the method: read this first", "the contract, for pytest", "its name for --methods", "how to go on")
    width = max(map(len, new.files()))
    files = [f"  {file:<{width}}  {meaning}" for file, meaning in zip(new.files(), meanings, strict=True)]
    steps = [f"  {command}" for command in new.commands(inside=False)]
    return "\n".join([f"{new.folder} is a method that works as it stands:", *files, "", "Next:", *steps])


def _checked(name: str, kind: Kind, into: Path) -> NewMethod:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a method: take at most 40 small letters, digits and single hyphens, a letter first, "
            "such as my-method"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module):
        raise UsageError(
            f"{name!r} is a word of Python, so no module can be called so; add a word, such as {name}-method"
        )
    for taken, what in _taken().items():
        if taken.replace("-", "_") == module:
            raise UsageError(f"{taken!r} is {what} already; choose another name")
    folder = into / name
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists already; choose another name, or another folder with --into")
    spec = find_spec(module)
    if spec is not None and spec.origin is not None:  # a bare folder of that name hides nothing
        raise UsageError(
            f"a module {module!r} exists already ({spec.origin}), which {name!r} would hide; choose another name"
        )
    return NewMethod(name, module, _class_name(name, _template(f"{kind.value}.py")), kind, folder)


def _taken() -> dict[str, str]:
    """Names that `--methods` and `--set` know -> what they are."""
    from bench import registry
    from bench.data.spec import spec_files
    from bench.plan import ALL

    found = {ALL: "a word for every method", **dict.fromkeys(spec_files(), "a dataset")}
    for kind in registry.GROUPS:
        found |= {one: f"a registered {kind} ({registry.origin(kind, one)})" for one in registry.names(kind)}
    return found


def _class_name(name: str, template: str) -> str:
    """`my-method` -> `MyMethod`; with `Method` behind it where the module uses that name for something else."""
    plain = "".join(part.capitalize() for part in re.split("[-_]", name))
    used = set(re.findall(r"\w+", template)) - {"MyMethod", "MyMethodConfig"}
    taken = {plain, f"{plain}Config"} & used or keyword.iskeyword(plain)
    return f"{plain}Method" if taken else plain


def _template(name: str) -> str:
    return (_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
