"""Networks of timm cut into experts: each expert is the whole network with its own last part; what is frozen stays as it is."""

import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.models import timm_backbone
from mdcs.models.expert_net import ExpertNet
from mdcs.models.timm_backbone import Timm

SMALL = {"swin_tiny_patch4_window7_224": 64, "vit_tiny_patch16_224": 32}  # networks of one size: the size to try them at
SMALL |= {"deit_tiny_distilled_patch16_224": 32, "mixer_s32_224": 64, "maxvit_rmlp_pico_rw_256": 64, "mvitv2_tiny": 32}
SMALL |= {"pit_ti_224": 64, "crossvit_tiny_240": 240}  # this one takes no other
NETWORKS = ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0", "regnetx_002", "mobilenetv3_small_050"]
CUTS = [(name, split) for name in NETWORKS for split in ("stage", 1, "head")]
CUTS += [("swin_tiny_patch4_window7_224", 1), ("densenet121", "stage"), ("densenet121", 1), ("mixer_s32_224", "stage")]
CUTS += [("maxvit_rmlp_pico_rw_256", "stage"), ("deit_tiny_distilled_patch16_224", "stage")]
CUTS += [("mvitv2_tiny", "stage"), ("crossvit_tiny_240", 1)]  # whose blocks hand on tuples and lists
CUTS += [("poolformer_s12", "stage"), ("poolformer_s12", 1), ("pit_ti_224", "stage")]  # whose blocks timm does not tell


def made(name: str, **arguments: Any) -> tuple[Timm, Tensor]:
    """A backbone with random weights everywhere (timm starts some blocks as the identity), and pictures for it."""
    torch.manual_seed(0)
    backbone = Timm(name=name, image_size=SMALL.get(name), **arguments)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    size = SMALL.get(name, 48)
    return backbone, torch.randn(4, 3, size, size)


def whole(backbone: Timm, k: int) -> torch.nn.Module:
    """timm's own network with the weights of expert k."""
    network = timm.create_model(backbone.name, num_classes=0, **backbone.settings)
    state = {}
    for name, tensor in backbone.state_dict().items():
        if ".copies." not in name or f".copies.{k}." in name:
            state[backbone.timm_name(name)] = tensor
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize(("name", "split"), CUTS)
def test_every_expert_is_timms_network_with_its_own_last_part(name: str, split: str | int) -> None:
    if (name, split) == ("densenet121", 1):
        with pytest.raises(UserError, match="densenet121 cannot be cut there"):
            made(name, num_experts=2, split=split)
        return
    backbone, images = made(name, num_experts=2, split=split)
    backbone.eval()
    with torch.no_grad():
        features = backbone(images)
        for k in range(2):
            network = whole(backbone, k).eval()
            expected = network.forward_head(network.forward_features(images), pre_logits=True)
            torch.testing.assert_close(features[:, k], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert features.shape == (4, 2, backbone.num_features)
    assert torch.equal(features[:, 0], features[:, 1]) == (split == "head")


@pytest.mark.parametrize("name", NETWORKS)
def test_one_expert_is_the_network_itself(name: str) -> None:
    backbone, images = made(name, num_experts=1)
    network = whole(backbone, 0).eval()
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images)[:, 0], network.forward_head(network.forward_features(images), pre_logits=True))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_gradients_reach_the_shared_part_and_the_own_part_only(name: str) -> None:
    backbone, images = made(name, num_experts=3)
    backbone(images)[:, 1].square().sum().backward()
    reached = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    others = [name for name, _ in backbone.named_parameters() if ".copies.0." in name or ".copies.2." in name]
    assert others and not reached & set(others)
    assert len(reached) >= len(list(backbone.parameters())) - len(others) - 3  # the bias before a softmax or a norm may not matter


def test_batch_norm_of_an_expert_sees_its_own_rows() -> None:
    backbone, images = made("efficientnet_b0", num_experts=2)
    alone = [whole(backbone, k) for k in range(2)]
    backbone(images)
    for k, network in enumerate(alone):
        network(images)
        own = backbone.get_submodule(f"network.bn2.copies.{k}")
        torch.testing.assert_close(own.running_mean, network.bn2.running_mean, rtol=1e-4, atol=1e-5)
    assert (alone[0].bn2.running_mean - alone[1].bn2.running_mean).abs().max() > 0.01


def trained(backbone: Timm) -> set[str]:
    return {backbone.timm_name(name) for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_frozen_trains_the_classifiers_only() -> None:
    backbone, images = made("resnet18", num_experts=2, train="frozen")
    net = ExpertNet(backbone, 5).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    out = net(images)
    assert not out.features.requires_grad and out.logits.requires_grad
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    torch.testing.assert_close(out.features, backbone.eval()(images))
    out.logits.sum().backward()
    assert {name for name, parameter in net.named_parameters() if parameter.grad is not None} == {"heads.weight"}


def test_last_blocks_are_trained_with_all_behind_them() -> None:
    backbone, images = made("vit_tiny_patch16_224", num_experts=2, split=1, train=2)
    assert trained(backbone) == {
        name for name in trained(made("vit_tiny_patch16_224")[0]) if name.startswith(("blocks.10.", "blocks.11.", "norm."))
    }
    modes = {name: module.training for name, module in backbone.train().network.named_modules()}
    assert not modes["blocks.9.attn"] and not modes["patch_embed"] and modes["blocks.10.attn"] and modes["norm"]
    backbone(images).square().sum().backward()
    moved = {backbone.timm_name(name) for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert moved == trained(backbone)

    resnet = made("resnet18", num_experts=2, train=1)[0]
    assert {name.rsplit(".", 2)[0] for name in trained(resnet)} == {"layer4.1"}
    assert all(not parameter.requires_grad for name, parameter in resnet.named_parameters() if "layer4.copies.1.0." in name)


def test_experts_start_apart_and_the_seed_decides() -> None:
    torch.manual_seed(3)
    one = Timm(2, "resnet18").state_dict()
    torch.manual_seed(3)
    two = Timm(2, "resnet18").state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    weight = "network.layer4.copies.{}.0.conv1.weight"
    assert not torch.equal(one[weight.format(0)], one[weight.format(1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"^model.name=resnet19: timm has no such network: did you mean .*resnet1.*"),
        ({"split": 99}, r"^model.split=99: resnet18 has 8 blocks, give a number from 1$"),
        ({"train": 0}, r"^model.train=0: resnet18 has 8 blocks, give a number from 1$"),
        ({"name": "pit_ti_224", "split": 1}, r"^timm's pit_ti_224 cannot be cut there \(.*\): .*model.split=head$"),
        ({"name": "densenet121", "image_size": 8}, r"^timm's densenet121 cannot take pictures of 8x8 pixels \(.*\): .*data.image_size.*$"),
        ({"name": "vgg11", "split": "head", "image_size": 8}, r"^timm's vgg11 cannot take pictures of 8x8 pixels \(.*\): .*$"),
        ({"name": "vit_tiny_patch16_224", "image_size": -3}, r"^model.*image_size.*"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        Timm(2, **arguments)
    assert "\n" not in str(refusal.value)


def test_the_hub_is_quiet_about_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network it would tell of a dozen attempts before our one line."""
    hub = logging.getLogger("huggingface_hub.file_download")
    before = hub.getEffectiveLevel()

    def attempt(name: str, settings: dict[str, Any], pretrained: bool) -> None:
        assert not hub.isEnabledFor(logging.WARNING) and hub.isEnabledFor(logging.ERROR)
        raise UserError("there is no network")

    monkeypatch.setattr(timm_backbone, "create", attempt)
    with pytest.raises(UserError, match="no network"):
        timm_backbone.timm_weights("resnet18", {})
    assert hub.getEffectiveLevel() == before


def test_pictures_of_another_size_than_the_network_takes() -> None:
    backbone = Timm(2, "vit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"pictures of 224x224 pixels, these have 32x32: set model.image_size"):
        backbone(torch.randn(2, 3, 32, 32))
    assert Timm(2, "resnet18", image_size=64)(torch.randn(2, 3, 40, 56)).shape == (2, 2, 512)


def test_exported_for_any_number_of_pictures() -> None:
    backbone, images = made("resnet18", num_experts=2, split=3)
    exported = torch.export.export(backbone.eval(), (images[:3],), dynamic_shapes={"images": {0: torch.export.Dim("N")}})
    torch.testing.assert_close(exported.module()(images), backbone(images))
