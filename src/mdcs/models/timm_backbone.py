"""Any classification network of timm as a backbone, cut into a shared part and one last part per expert."""

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mdcs.errors import UserError
from mdcs.types import Backbone

ROWS = 2  # pictures of a dry run; more than one, so that one row cannot pass for many


class PerExpert(nn.Module):
    """One module of a network, once per expert. Experts lie one after the other along the batch: row k·N + n is picture n of expert k.

    The first such module (`fork`) gives its N rows to each copy and yields K·N; the others give each copy its own N of the K·N rows.
    """

    def __init__(self, copies: Sequence[nn.Module], fork: bool) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.fork = fork

    def forward(self, *arguments: Any, **named: Any) -> Any:
        rows = next((value.shape[0] for value in flat(arguments) if isinstance(value, Tensor) and value.ndim), None)
        if rows is None:
            raise TypeError("a module takes no tensor")

        def of(value: Any, k: int) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(of(part, k) for part in value)
            shared = self.fork or not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != rows
            own_rows = rows // len(self.copies)
            return value if shared else value.narrow(0, k * own_rows, own_rows)

        outputs = []
        for k, own in enumerate(self.copies):
            outputs.append(own(*of(arguments, k), **{name: of(value, k) for name, value in named.items()}))
        return joined(outputs)


def flat(value: Any) -> list[Any]:
    """What lies in tuples and lists, however deep."""
    return [inner for part in value for inner in flat(part)] if isinstance(value, tuple | list) else [value]


def joined(outputs: Sequence[Any]) -> Any:
    """The outputs of all experts as one: tensors one after the other, in tuples and lists, too; of all else (a size) the first."""
    first = outputs[0]
    if isinstance(first, tuple | list):
        return type(first)(joined(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(list(outputs)) if isinstance(first, Tensor) else first


class Timm(Backbone):
    """(N, 3, H, W) -> (N, K, D): timm's network `name` up to its classifier, with the last part once per expert.

    `split` says what that part is: "head", only the classifiers (all experts see the same features); "stage", the last stage, which in a
    network without stages (a ViT) is the last quarter of its blocks; or the number of last blocks. All modules that run after the first
    of these belong to the experts, too. Stages and blocks are those of timm's own `group_matcher`.
    `train` says what is trained beside the classifiers: "all", nothing ("frozen"), or the number of last blocks, with all that comes after
    them. What is frozen gets no gradient, and its batch-norm and dropout are in evaluation mode.
    `image_size`: the side of the pictures, for networks that are made for one size (ViT, Swin); null is timm's default, mostly 224.

    For K = 1 the features are timm's `forward_head(forward_features(images), pre_logits=True)`.
    """

    def __init__(
        self,
        num_experts: int = 3,
        name: str = "resnet18",
        split: Literal["head", "stage"] | int = "stage",
        train: Literal["all", "frozen"] | int = "all",
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        import timm

        check_name(name)
        if image_size is not None and image_size < 1:
            raise UserError(f"model.image_size={image_size}: give the side of the pictures in pixels, or null")
        pretrained_cfg = timm.get_pretrained_cfg(name)
        fixed = pretrained_cfg is not None and pretrained_cfg.fixed_input_size
        size = image_size or (pretrained_cfg.input_size[-1] if pretrained_cfg is not None else 224)
        self.num_experts = num_experts
        self.name = name
        self.split = split
        self.image_size = size if fixed else None
        self.settings = {"img_size": size} if fixed else {}  # for timm.create_model
        self.network = create(name, self.settings)
        dry_run(self.network, size, lambda reason: misfit(name, size, reason))
        self.owned: tuple[str, ...] = ()  # the modules of which each expert has its own
        self.frozen: list[nn.Module] = []
        trained = set() if train == "frozen" else {name for name, _ in self.network.named_parameters()}
        if isinstance(train, int):
            trained = last_parameters(self.network, name, train, f"model.train={train}")
        if split != "head":
            apart = last_parameters(self.network, name, split, f"model.split={split}")
            self.owned = executed_from(self.network, apart, size, name)
            others = [create(name, self.settings) for _ in range(num_experts - 1)]
            for place, module in enumerate(self.owned):
                wrapped = PerExpert([net.get_submodule(module) for net in (self.network, *others)], fork=place == 0)
                above, _, leaf = module.rpartition(".")
                setattr(self.network.get_submodule(above), leaf, wrapped)
        shape = dry_run(self.network, size, lambda reason: uncut(name, reason))
        if len(shape) != 2 or shape[0] != ROWS * (num_experts if self.owned else 1):
            raise UserError(uncut(name, f"it yields features of shape {shape} for {ROWS} pictures"))
        self.num_features = shape[1]

        for parameter_name, parameter in self.named_parameters():
            parameter.requires_grad_(self.timm_name(parameter_name) in trained)
        for part in self.network.modules():
            weights = list(part.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                self.frozen.append(part)
        self.train()

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Tensor:
        height, width = images.shape[-2:]
        if self.image_size not in (None, height) or self.image_size not in (None, width):
            raise UserError(
                f"{self.name} is made for pictures of {self.image_size}x{self.image_size} pixels, these have {height}x{width}: "
                "set model.image_size to their size"
            )
        rows_D: Tensor = self.network.forward_head(self.network.forward_features(images), pre_logits=True)  # type: ignore[operator]
        if not self.owned:
            return rows_D.unsqueeze(1).expand(-1, self.num_experts, -1)
        return rows_D.unflatten(0, (self.num_experts, images.shape[0])).transpose(0, 1)

    def train(self, mode: bool = True) -> "Timm":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def timm_name(self, name: str) -> str:
        """What timm calls the tensor that is `name` here, the same for all experts."""
        name = name.removeprefix("network.")
        for module in self.owned:
            if name.startswith(f"{module}.copies."):
                return f"{module}.{name.removeprefix(f'{module}.copies.').partition('.')[2]}"
        return name


def check_name(name: str) -> None:
    """UserError if timm has no network `name` (with or without the tag of its weights, as in resnet18.a1_in1k)."""
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3, 0.6)
        raise UserError(f"model.name={name}: timm has no such network{': did you mean ' * bool(close)}{' or '.join(close)}")


def create(name: str, settings: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """timm's network without classifier; UserError if timm refuses or, with `pretrained`, the weights cannot be had."""
    import timm

    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **settings)
    except Exception as error:  # timm and its hub raise nearly everything, AssertionError and OSError among it
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if pretrained:
            raise UserError(f"model.pretrained: the weights of {name} cannot be had ({reason}); give the path of a file of them") from error
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UserError(f"model.name={name}: timm cannot make it{' with ' * bool(given)}{given} ({reason})") from error
    return network


def timm_weights(name: str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The trained weights that timm has for its network `name`, fetched at the first time."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # a line for each of its attempts, otherwise
    try:
        with torch.random.fork_rng(devices=[]):
            return create(name, settings, pretrained=True).state_dict()
    finally:
        hub.setLevel(level)


def last_parameters(network: nn.Module, name: str, number: int | str, setting: str) -> set[str]:
    """Names of the parameters of the last `number` blocks, or of the last stage ("stage"), and of all behind them."""
    blocks = groups(network, name, coarse=False)
    chosen = blocks
    if number == "stage":
        chosen = groups(network, name, coarse=True)
        flat = len(chosen) == len(blocks)
        number = -(-(len(blocks) - 2) // 4) if flat else 1
    if not isinstance(number, int) or not 1 <= number <= len(chosen) - 2:
        raise UserError(f"{setting}: {name} has {len(chosen) - 2} blocks, give a number from 1")
    return {parameter for group in chosen[-1 - number :] for parameter in group}


def groups(network: nn.Module, name: str, coarse: bool) -> list[list[str]]:
    """Parameter names by stage (coarse) or block, as timm orders them for layer-wise settings: first the stem, last the classifier."""
    from timm.models import group_parameters

    network.add_module("behind", nn.Linear(1, 1, device="meta"))  # in place of the classifier, so that the last group is always its
    try:
        matched: dict[int, list[str]] = group_parameters(network, matcher(network, name, coarse))
    finally:
        del network.behind
    return [matched[number] for number in sorted(matched)]


def matcher(network: nn.Module, name: str, coarse: bool) -> Any:
    """timm's `group_matcher` of the network; the MetaFormers and a few others have none, but name their parts alike."""
    if hasattr(network, "group_matcher"):
        return network.group_matcher(coarse=coarse)  # type: ignore[operator]
    stage = r"(?:stages|transformers)\.(\d+)"
    if not any(re.match(stage, parameter) for parameter, _ in network.named_parameters()):
        raise UserError(uncut(name, "timm does not tell its blocks"))
    blocks = [(rf"^{stage}\.(?:blocks\.)?(\d+)\.", None), (f"^{stage}", (0,))]  # what is in no block begins its stage
    return {"stem": r"^(?!stages\.|transformers\.|norm|head|behind)", "blocks": f"^{stage}" if coarse else blocks}


def executed_from(network: nn.Module, apart: set[str], size: int, name: str) -> tuple[str, ...]:
    """The outermost modules with parameters that run from the first one on all of whose parameters are among `apart`, in their order."""
    names = {module: path for path, module in network.named_modules() if path and any(True for _ in module.parameters())}
    order: list[str] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: order.append(names[module])) for module in names]
    try:
        dry_run(network, size, lambda reason: uncut(name, reason))
    finally:
        for hook in hooks:
            hook.remove()
    own = {path for path in names.values() if all(parameter in apart for parameter in parameters_under(network, path))}
    first = next((place for place, path in enumerate(order) if path in own), None)
    if first is None:
        raise UserError(uncut(name, "its blocks do not run one after the other"))
    outermost: list[str] = []
    for path in order[first:]:
        if not path.startswith(tuple(f"{other}." for other in outermost)) and path not in (*outermost, *order[:first]):
            outermost.append(path)
    return tuple(outermost)


def parameters_under(network: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name, _ in network.get_submodule(path).named_parameters()]


def dry_run(network: nn.Module, size: int, refusal: Callable[[str], str]) -> tuple[int, ...]:
    """Shape of what `network` yields for ROWS pictures; UserError, worded by `refusal`, if it yields nothing.

    Nothing is computed: all tensors are on the meta device.
    """
    state = {key: tensor.to("meta") for key, tensor in (*network.named_parameters(), *network.named_buffers())}
    network.eval()
    try:
        with torch.no_grad():
            yielded = torch.func.functional_call(network, state, (torch.empty(ROWS, 3, size, size, device="meta"),))
    except Exception as error:  # whatever a network does when its parts are not what it expects
        raise UserError(refusal(next(iter(str(error).splitlines()), type(error).__name__))) from error
    finally:
        network.train()
    return tuple(yielded.shape) if isinstance(yielded, Tensor) else ()


def uncut(name: str, reason: str) -> str:
    """The message about a network that cannot be cut as asked."""
    return f"timm's {name} cannot be cut there ({reason}): try another model.split, or model.split=head"


def misfit(name: str, size: int, reason: str) -> str:
    """The message about pictures that a network cannot take."""
    return f"timm's {name} cannot take pictures of {size}x{size} pixels ({reason}): choose another size (data.image_size) or network"
