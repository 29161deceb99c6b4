"""Command-line words to a configuration: Hydra composes it; this file quotes paths before, and puts refusals into one line after.

Nothing here imports torch, so a mistake in a key is told within a second.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdcs.errors import UserError
from mdcs.instantiate import suggestion

PATH_KEYS = ("run", "resume", "file", "input", "output", "figure", "figures", "data.root", "data.file", "hydra.run.dir", "hydra.sweep.dir")
OPTIONAL_PATHS = ("data.cache", "data.train_list", "data.val_list", "data.test_list", "model.pretrained")
NO_PATHS = ("null", "true", "false")  # what an optional path may be instead
NAMED = ("data", "model", "loss")  # groups of choices that a run is called by
VERSION_BASE = "1.3"


def first_rank() -> bool:
    """Whether this process speaks for all ranks of a run."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, beside `src` in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def hydra_words(words: Sequence[str]) -> list[str]:
    """Command-line words as Hydra's grammar takes them: paths quoted, `trainer.x` allowed for any argument x of Lightning's."""
    return [_hydra_word(word) for word in words]


def _hydra_word(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and not name.strip("+~"):
        raise UserError(f"cannot read {word!r}: expected key=value")
    bare = name.lstrip("+")
    if value == "null" and bare in ("trainer", *NAMED):
        raise UserError(f"{word}: expected one of {', '.join(sorted(file.stem for file in (conf_dir() / bare).glob('*.yaml')))}")
    if equals and (bare in PATH_KEYS or (bare in OPTIONAL_PATHS and value not in NO_PATHS)):
        return f"{name}={_quoted(value)}"
    if equals and bare == "runs":
        paths = [path for path in value[1:-1].split(",") if path.strip()] if re.fullmatch(r"\[.*\]", value) else [value]
        return f"{name}=[{','.join(_quoted(path.strip()) for path in paths)}]"
    if bare.startswith("trainer.") and not word.startswith(("+", "~")):
        return "++" + word
    return word


def _quoted(path: str) -> str:
    if re.fullmatch(r"""(["']).*\1""", path):  # quoted by the caller: Lightning does so when it starts other ranks
        return path
    # In a quoted value Hydra reads backslashes as escapes only before a quote (or at the end).
    escaped = re.sub(r'(\\*)("|$)', lambda m: m.group(1) * 2 + ('\\"' if m.group(2) else ""), path)
    return f'"{escaped}"'


def compose(verb: str, words: Sequence[str]) -> Any:
    """The configuration (a DictConfig with its `hydra` node) of `verb` with the overrides `words`, or UserError."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    name = "config" if verb == "train" else verb
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # a sweep's own, which allows no second one
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            return hydra.compose(name, hydra_words(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as refusal:
        raise UserError(in_one_line(refusal, name)) from refusal
    finally:
        GlobalHydra.instance().hydra = running


def register_resolvers() -> None:
    """`${run_name:${hydra.runtime.choices}}` is the experiment's name, or data-model-loss."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def run_name(choices: Mapping[str, Any]) -> str:
    """What runs of these choices are called."""
    experiment = choices.get("experiment")
    return str(experiment) if experiment not in (None, "null") else "-".join(choices[group] for group in NAMED)


def with_names(cfg: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """`cfg`, whose logger (if it can tell runs apart by them) knows the names of the `choices` that were made."""
    node = cfg.get("logger") or {}
    if "choices" not in node:
        return dict(cfg)
    names = {"group": node.get("group") or run_name(choices), "choices": {group: str(choices[group]) for group in NAMED}}
    return {**cfg, "logger": {**node, **names}}


def in_one_line(refusal: Exception, name: str = "config") -> str:
    """What Hydra or OmegaConf refuses, in one line that says what to do."""
    from hydra.errors import OverrideParseException

    if isinstance(refusal, OverrideParseException):
        example = """'data.classes=["a b","c"]'"""
        quotes = f"; unusual characters want inner quotes, as in {example}" if "=" in refusal.override else ""
        return f"cannot read {refusal.override!r}: expected key=value{quotes}"
    text = str(refusal)
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'", text):
        word = ambiguous.group(1)
        name, _, value = word.partition("=")
        return f"{word} has several values: -m trains a run for each; a list is written {name}=[{value}], one text with commas in quotes"
    unknown = re.search(r"(?:Key '(\S+)' is not in struct|Could not override '([^']+)')", text)
    full_key = re.search(r"full_key: (\S+)", text)
    if unknown:
        key = full_key.group(1) if full_key else unknown.group(2) or unknown.group(1)
        group, _, setting = key.partition(".")
        having = [
            file.stem
            for file in sorted(conf_dir().glob(f"{group}/*.yaml"))
            if re.search(rf"^{re.escape(setting)}:", file.read_text(encoding="utf-8"), re.M)
        ]
        if setting and having:
            return (
                f"{key}: there is no such setting with the {group} chosen, but with {', '.join(f'{group}={choice}' for choice in having)}"
            )
        files = sorted(conf_dir().glob(f"{group}/*.yaml"))
        others = [f"{group}.{found}" for file in files for found in re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.M)]
        return f"{key}: there is no such setting{suggestion(key, [*_known_keys(name), *others])}"
    choice = re.search(
        r"Could not find '([^']+)/([^'/]+)'.*?Available options in '[^']+':\n(.*?)\n(?:Config search path|$)", text + "\n", re.DOTALL
    )
    if choice:
        group, given, there = choice.group(1), choice.group(2), choice.group(3).split()
        meant = suggestion(given, there)
        listed = meant if "did you mean" in meant else f"; there is {', '.join(there)}"
        return f"{group}={given}: there is no such choice{listed}"
    if text.startswith("Missing mandatory value: "):
        return f"{text.split()[3]}=... is missing: this verb needs it"
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        return f"{missing.group(1)}: there is no such configuration file"
    return " ".join(text.split())


def _known_keys(name: str) -> list[str]:
    """All settings of the default configuration, with dots."""
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
        tree = OmegaConf.to_container(hydra.compose(name), resolve=False, throw_on_missing=False)

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix, *(key for child, value in node.items() for key in walk(value, f"{prefix}.{child}"))]

    assert isinstance(tree, dict)
    return [key for child, value in tree.items() for key in walk(value, str(child)) if not key.endswith("_target_")]


def plain(cfg: Any) -> dict[str, Any]:
    """The resolved configuration as plain Python values, without Hydra's own node."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = OmegaConf.to_container(
            OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as refusal:
        raise UserError(in_one_line(refusal)) from refusal
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def run_dir(cfg: Any) -> str:
    """Where the composed run goes."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return str(cfg.hydra.run.dir)
    except OmegaConfBaseException as refusal:
        raise UserError(f"hydra.run.dir: {in_one_line(refusal)}") from refusal


def read_yaml(path: Path) -> dict[str, Any]:
    """A plain YAML file, for example a run's config.yaml."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged, it is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a configuration: expected keys and values")
    return content


def require_run(word: str, folder: Path) -> None:
    """Refuse a `folder`, which `word` has named, that holds no run."""
    if not (folder / "config.yaml").exists():
        raise UserError(f"{word}={folder}: {'a file, not' if folder.is_file() else 'not'} a run folder, it has no config.yaml")


def runs_of(patterns: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The run folders that the words of `runs` name, each once, in the order named: run folders, folders that hold runs (a sweep), or
    patterns with * and ?. And the runs that folders and patterns hold but that have no scores.json, which are not among the first.
    """
    if not patterns:
        raise UserError("runs=[] names no run: give run folders, folders of runs or patterns, for example 'runs=[runs/a*,runs/b]'")
    found, unfinished = dict[Path, Path](), list[Path]()
    for pattern in patterns:
        named = Path(pattern).expanduser()
        if (named / "config.yaml").exists():
            found.setdefault(named.resolve(), named)
            continue
        places = [named] if named.exists() else [Path(place) for place in glob.glob(str(named))]
        if not places:
            raise UserError(f"runs: nothing is named {pattern}, or matches it")
        folders = sorted((file.parent for place in places for file in place.rglob("config.yaml")), key=in_reading_order)
        if not folders:
            raise UserError(f"runs: {pattern} is no run folder and holds none")
        for folder in folders:
            if (folder / "scores.json").exists():
                found.setdefault(folder.resolve(), folder)
            else:
                unfinished.append(folder)
    if not found:
        raise UserError(
            f"runs: none of the {len(unfinished)} runs has finished; `mdcs train resume={unfinished[0]}` goes on with the first"
        )
    return list(found.values()), unfinished


def in_reading_order(folder: Path) -> list[tuple[int, str]]:
    """Sorts sweep/2 before sweep/10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(folder))]


def with_absolute_paths(cfg: Mapping[str, Any], *, inside: str = "") -> dict[str, Any]:
    """`cfg` with its paths as they will still be right in another folder. Of the optional ones, those that exist: others may be meant
    relative to the dataset, or be no path.
    """
    changed = dict(cfg)
    for name, value in cfg.items():
        key = f"{inside}{name}"
        if isinstance(value, Mapping):
            changed[name] = with_absolute_paths(value, inside=f"{key}.")
        elif name == "runs":
            changed[name] = [absolute(path) for path in ([value] if isinstance(value, str) else value)]
        elif value == "" and key in PATH_KEYS:
            raise UserError(f"{key}= is empty: expected a path")
        elif isinstance(value, str) and (key in (*PATH_KEYS, "data.cache") or (key in OPTIONAL_PATHS and os.path.exists(absolute(value)))):
            changed[name] = absolute(value)
    return changed


def absolute(path: str) -> str:
    """`path` as it will still be right in another folder; ~ is the home folder."""
    return os.path.abspath(os.path.expanduser(path))
