"""What a configuration node may name and hold: the allow list by resolved object, argument types, messages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
import torch

from mdcs.augment.policies import Identity
from mdcs.errors import UserError
from mdcs.instantiate import call, check_arguments, fits, instantiate, resolve, suggestion
from mdcs.types import Backbone, Loss, Policy

HERE = __name__


class Part:
    """Has a parameter of every kind that configuration can hold."""

    def __init__(
        self,
        size: int,
        count: int = 1,
        share: float = 0.5,
        flag: bool = False,
        name: str = "",
        kind: Literal["exp", "step"] = "exp",
        widths: Sequence[int] = (),
        names: list[str] | None = None,
        strengths: float | Sequence[float] | None = None,
        pair: tuple[float, ...] = (),
        table: Mapping[str, int] | None = None,
        policy: Policy = None,  # type: ignore[assignment]
    ) -> None:
        if share > 1:
            raise ValueError(f"share is\n{share}")
        self.count, self.share, self.policy = count, share, policy


class SubPart(Part):
    """Takes what `Part` takes."""


class Refusal(Exception):
    """A library's own."""


def node(name: str = "Part", **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **arguments}


# ---------------------------------------------------------------------------------------------------------------- allow list


@pytest.mark.parametrize("target", ["torch.os.system", "torch.serialization.os.system", "os.system", "builtins.eval", "torch.nn.Linear"])
def test_what_resolves_to_another_kind_of_object_is_not_allowed(target: str) -> None:
    with pytest.raises(UserError, match=rf"loss._target_={target} is not allowed here: expected a subclass of mdcs.types.Loss$"):
        resolve(target, Loss, "loss")


@pytest.mark.parametrize("target", ["this.s", "nowhere.MDCS", "MDCS", "", ".MDCS", "..a.b"])
def test_nothing_else_is_imported(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Importing a module runs it; `this` prints."""
    with pytest.raises(UserError, match=r"is not allowed here: expected a subclass of mdcs.types.Loss, from mdcs, torch, timm$"):
        resolve(target, Loss, "loss")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("target", ["mdcs.losses.mdcs.MCDS", "mdcs.nothing.MDCS", "mdcs", "mdcs..MDCS"])
def test_a_name_that_does_not_exist(target: str) -> None:
    with pytest.raises(UserError, match=r"there is no such class; expected a subclass of mdcs.types.Loss$"):
        resolve(target, Loss, "loss")


@pytest.mark.parametrize("target", [None, 3, ["mdcs.losses.mdcs.MDCS"], torch.nn.Linear])
def test_a_target_that_is_no_text(target: Any) -> None:
    with pytest.raises(UserError, match=r"loss\._target_=.* is not a dotted path"):
        resolve(target, Loss, "loss")


def test_an_allowed_class_is_found() -> None:
    from mdcs.losses.mdcs import MDCS

    assert resolve("mdcs.losses.mdcs.MDCS", Loss, "loss") is MDCS
    assert isinstance(instantiate(node("SubPart", size=1), Part, "part"), SubPart)
    with pytest.raises(UserError, match="not allowed"):
        resolve("mdcs.losses.mdcs.MDCS", Backbone, "model")


def test_nothing_is_called_before_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("os.system", lambda command: called.append(command))
    for bad in (
        {"_target_": "torch.os.system", "command": "true"},
        node(size=1, policy={"_target_": "torch.os.system", "command": "true"}),
    ):
        with pytest.raises(UserError, match="not allowed here"):
            instantiate(bad, Part, "part")
    assert called == []


def test_nested_nodes_must_be_what_their_parameter_says() -> None:
    identity = {"_target_": "mdcs.augment.policies.Identity"}
    assert isinstance(instantiate(node(size=1, policy=identity), Part, "part").policy, Identity)
    with pytest.raises(UserError, match=rf"part.policy._target_={HERE}.Part is not allowed here: expected a subclass of mdcs.types.Policy"):
        instantiate(node(size=1, policy=node(size=1)), Part, "part")
    with pytest.raises(UserError, match=r"part.policy.shfit is not a setting of DigitsWeak: did you mean shift\?"):
        instantiate(node(size=1, policy={"_target_": "mdcs.augment.policies.DigitsWeak", "shfit": 1}), Part, "part")


# ---------------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 2.0, "a whole number"),
        ("count", True, "a whole number"),
        ("count", None, "a whole number"),
        ("share", "half", "a number"),
        ("share", False, "a number"),
        ("share", math.nan, "a finite number"),
        ("share", -math.inf, "a finite number"),
        ("flag", 1, "true or false"),
        ("flag", "yes", "true or false"),
        ("name", 3, "a text"),
        ("kind", "exponential", "one of exp, step"),
        ("kind", None, "one of exp, step"),
        ("widths", 16, "a list of whole numbers"),
        ("widths", [16, 2.5], "a list of whole numbers"),
        ("widths", "16", "a list of whole numbers"),
        ("names", "bee", "a list of texts or null"),
        ("strengths", "x", "a number or a list of numbers or null"),
        ("strengths", [0.5, True], "a number or a list of numbers or null"),
        ("pair", [1.0, None], "a list of numbers"),
        ("table", [1], "null"),
        ("policy", "weak", "a Policy"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_what_was_expected(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_arguments(Part, {"size": 1, name: value}, "part")
    message = str(refusal.value)
    given = repr(value).replace("None", "null").replace("True", "true").replace("False", "false")
    assert message.startswith(f"part.{name}={given}: expected ") and message.endswith(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("count", 0),
            ("share", 1),
            ("flag", True),
            ("name", ""),
            ("kind", "step"),
            ("widths", []),
            ("widths", (1, 2)),
        ],
        *[("names", None), ("names", ["a"]), ("strengths", 1), ("strengths", [1, 2.0]), ("strengths", None), ("table", {"a": 1})],
    ],
)
def test_values_that_fit(name: str, value: Any) -> None:
    hints = check_arguments(Part, {"size": 1, name: value}, "part")
    assert name in hints


def test_literals_compare_by_type_too() -> None:
    assert fits(10, Literal[10, 100]) and not fits(10.0, Literal[10, 100]) and not fits(True, Literal[1])


@pytest.mark.parametrize(
    ("key", "end"),
    [("cuont", r"did you mean count\?"), ("zzz", r"there is size, count, share, .*, policy")],
)
def test_an_unknown_setting_is_told_with_a_suggestion(key: str, end: str) -> None:
    with pytest.raises(UserError, match=rf"^part\.{key} is not a setting of Part: {end}$"):
        instantiate(node(size=1, **{key: 1}), Part, "part")


def test_what_the_program_gives_is_no_setting() -> None:
    with pytest.raises(UserError, match=r"part.size is not a setting of Part"):
        instantiate(node(size=1), Part, "part", size=2)


def test_suggestions_prefer_the_same_last_name_and_do_not_list_hundreds() -> None:
    assert suggestion("alpha", ["loss.alpha", "alphas"]) == ": did you mean loss.alpha?"
    assert "--cfg job" in suggestion("x", [f"a.{number}" for number in range(20)])


# ---------------------------------------------------------------------------------------------------------------- constructors


def test_a_refusal_by_the_constructor_becomes_one_line() -> None:
    with pytest.raises(UserError, match=r"^part: Part refuses its arguments: share is 2$"):
        instantiate(node(size=1, share=2), Part, "part")
    with pytest.raises(UserError, match=r"^part: Part refuses its arguments: .*missing.*'size'$"):
        instantiate(node(), Part, "part")


def test_other_refusals_and_our_own() -> None:
    def raises(error: Exception) -> None:
        raise error

    with pytest.raises(UserError, match=r"^trainer: raises refuses its arguments: no such device$"):
        call(raises, "trainer", Refusal("no such\n device"), also=Refusal)
    with pytest.raises(UserError, match=r"^already told$"):
        call(raises, "trainer", UserError("already told"))
    with pytest.raises(Refusal):
        call(raises, "trainer", Refusal("a bug is no refusal"))
