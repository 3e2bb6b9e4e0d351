"""A floor under classifiers that other people wrote, and everything they go through afterwards."""

import collections
import copy
import os
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import reference
from entropyfloor import torchvision_shim
from entropyfloor.torch.nn import ERALinear, ERASoftmax
from entropyfloor.vision import attach_era, detach_era, registry  # before timm: see the shim

import timm  # isort: skip
import torchvision  # isort: skip
from timm.models._features_fx import create_feature_extractor  # isort: skip
from timm.models._registry import _model_to_module  # isort: skip
from timm.utils import ModelEmaV3  # isort: skip

FLOOR = 0.6
MODELS = {  # size of the image, and how to build for one so small
    "resnet18": (32, {}),
    "resnet50": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
    "convnext_atto": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "efficientnet_b0": (32, {}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "window_size": 2}),
    "regnetx_002": (32, {}),
}
SMALL = {"test_resnet": (32, {}), "test_vit": (32, {"img_size": 32})}
exactly = {"rtol": 0, "atol": 0}


def build(name="test_resnet", device="cpu", **options):
    with torch.device(device):
        return timm.create_model(name, num_classes=10, **(MODELS | SMALL).get(name, (0, {}))[1], **options).eval()


def images(name="test_resnet", rows=4):
    size = (MODELS | SMALL)[name][0]
    return 3 * torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(0))


def adversarial(name="test_resnet"):
    """A plain model whose logits go up to 1e4."""
    torch.manual_seed(0)
    model = build(name)
    head = model.get_classifier()
    with torch.no_grad():
        head.bias.zero_()
        head.weight.mul_(1e4 / model(images(name)).abs().max())
    return model


def entropy(logits):
    return reference.categorical_entropy(logits.detach().double().numpy())


def assert_floored(logits):
    assert logits.dtype == torch.float32
    assert logits.shape[-1] == 10
    assert (entropy(logits) >= FLOOR - 1e-4).all()


def modules(model):
    return [(name, id(module)) for name, module in model.named_modules()]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_floor_holds_and_can_be_taken_away(name):
    model, x = adversarial(name), images(name)
    plain = model(x)
    assert (entropy(plain) < FLOOR / 2).all()
    detach_era(model)  # of no consequence
    for floor in ("calibrated", "paper"):  # the second floor replaces the first
        assert attach_era(model, FLOOR, floor=floor) is model
        logits = model(x)
        assert_floored(logits)
        torch.testing.assert_close(logits, ERASoftmax(10, FLOOR, floor=floor)(plain), **exactly)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), logits)
        one_hot = torch.eye(model.get_classifier().in_features)
        features = torch.cat([1e4 * one_hot, -1e4 * one_hot, 0 * one_hot[:1]])
        assert_floored(model.get_classifier()(features))
    assert detach_era(model) is model
    torch.testing.assert_close(model(x), plain, **exactly)
    assert not any(isinstance(module, ERALinear) for module in model.modules())
    assert "reset_classifier" not in vars(model)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_their_names_stay(name):
    plain, era = build(name, "meta"), build(name, "meta")
    parameters = dict(era.named_parameters())
    attach_era(era, FLOOR)
    assert list(dict(era.named_parameters())) == list(parameters)
    assert all(parameter is parameters[name] for name, parameter in era.named_parameters())
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (plain, era)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    detach_era(era)
    assert all(parameter is parameters[name] for name, parameter in era.named_parameters())


@torch.no_grad()
def test_checkpoints_load_both_ways():
    plain, era, x = adversarial(), attach_era(build(), FLOOR), images()
    era.load_state_dict(plain.state_dict())
    torch.testing.assert_close(era(x), ERASoftmax(10, FLOOR)(plain(x)), **exactly)
    back = build()
    back.load_state_dict(era.state_dict())
    torch.testing.assert_close(back(x), plain(x), **exactly)


@pytest.mark.parametrize("mode", [True, False])
def test_an_optimiser_built_before_goes_on(mode):
    model = build().train(mode)
    model.fc.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach_era(model, FLOOR)
    assert all(module.training == mode for module in model.modules())
    before = copy.deepcopy(model.state_dict())
    nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
    optimizer.step()
    assert torch.equal(model.fc.weight, before["fc.weight"])
    assert not torch.equal(model.fc.bias, before["fc.bias"])
    assert not torch.equal(model.conv1[0].weight, before["conv1.0.weight"])


def assert_floored_head(model, classes, min_entropy=FLOOR):
    """The place of the head, its widths and its options, on any device."""
    head = model.get_classifier()
    assert [module for module in model.modules() if isinstance(module, ERALinear)] == [head]
    assert (head.in_features, head.out_features) == (model.head_hidden_size, classes)
    assert (model.num_classes, head.activation.num_classes) == (classes, classes)
    assert (head.activation.min_entropy, head.activation.tau) == (min_entropy, 5.0)


@pytest.mark.parametrize("name", MODELS)
def test_reset_classifier_keeps_the_floor(name):
    model = attach_era(build(name, "meta"), 1.5, tau=5.0)
    model.reset_classifier(7)
    assert_floored_head(model, 7, 1.5)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(5)
    assert_floored_head(model, 5, 1.5)
    before = modules(model)
    for classes in (4, 1):  # log 4 < 1.5
        with pytest.raises(ValueError, match=r"choose a floor|num_classes=1"):
            model.reset_classifier(classes)
        assert modules(model) == before
        assert_floored_head(model, 5, 1.5)
    detach_era(model).reset_classifier(4)
    assert not isinstance(model.get_classifier(), ERALinear)


def test_a_head_that_was_named_is_reset_under_its_name():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Linear(4, 4), nn.Linear(4, 10)

        def reset_classifier(self, classes):
            self.last = nn.Linear(4, classes)

    model = attach_era(Other(), FLOOR, head="last")
    model.reset_classifier(7)
    assert isinstance(model.last, ERALinear)
    assert type(model.body) is nn.Linear


def test_a_head_with_two_names_is_floored_under_both():
    model = build(device="meta")
    model.alias = model.fc
    attach_era(model, FLOOR)
    assert isinstance(model.fc, ERALinear)
    assert isinstance(model.alias, ERALinear)


def test_reset_classifier_passes_on_what_the_model_takes():
    model = attach_era(build(), FLOOR)
    model.reset_classifier(7, global_pool="max")
    assert isinstance(model.fc, ERALinear)
    assert model.global_pool.pool_type == "max"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_reset_and_not_the_original(duplicate):
    model = attach_era(adversarial(), FLOOR, tau=5.0)
    other = duplicate(model)
    torch.testing.assert_close(other(images()), model(images()), **exactly)
    before = modules(model)
    other.reset_classifier(7)
    assert_floored_head(other, 7)
    assert modules(model) == before
    assert_floored_head(model, 10)


# --- what others do with a model ----------------------------------------------------------------------------


def test_moving_average():
    model = attach_era(build(), FLOOR)
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.fc.weight.mul_(1e6)
    ema.update(model)
    assert isinstance(ema.module.fc, ERALinear)
    assert not torch.equal(ema.module.fc.weight, model.fc.weight)
    assert entropy(detach_era(copy.deepcopy(ema.module))(images())).min() < FLOOR / 2
    assert_floored(ema.module(images()))


@pytest.mark.parametrize("name", SMALL)
def test_autocast(name):
    model = adversarial(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images(name)).dtype == torch.bfloat16
        assert_floored(attach_era(model, FLOOR)(images(name)))


def test_fx():
    model = attach_era(adversarial(), FLOOR)
    expected = model(images())
    assert_floored(expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), expected, **exactly)
    nodes = create_feature_extractor(model, {"global_pool": "features", "fc": "logits"})(images())
    torch.testing.assert_close(nodes["logits"], expected, **exactly)
    torch.testing.assert_close(model.fc(nodes["features"]), expected, **exactly)


@pytest.mark.parametrize("name", SMALL)
def test_export(name):
    model = attach_era(adversarial(name), FLOOR)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(model, (images(name),), dynamic_shapes=batch).module()
    for rows in (4, 3):
        x = images(name)[:rows]
        torch.testing.assert_close(exported(x), model(x), **exactly)
        assert_floored(exported(x))


@pytest.mark.slow
def test_compile():
    torch._dynamo.reset()
    model = attach_era(adversarial(), FLOOR)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()))
    assert_floored(compiled(images()))


@pytest.mark.slow_but_first
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated", "ignore:.*:torch.jit.TracerWarning")
@pytest.mark.parametrize("options", [{}, {"floor": "paper", "inverse": "paper"}, {"tau": 6.0}], ids=str)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "convnext_atto"])
@pytest.mark.parametrize("way", ["script", "trace"])
def test_jit(way, name, options, tmp_path):
    """As far as the plain model: written to a file and read again, values and gradients the same."""
    model = attach_era(adversarial(name), FLOOR, **options)
    x = images(name)
    made = torch.jit.script(model) if way == "script" else torch.jit.trace(model, x)
    torch.jit.save(made, tmp_path / "model.pt")
    saved = torch.jit.load(tmp_path / "model.pt")
    logits = saved(x)
    assert_floored(logits)
    torch.testing.assert_close(logits, model(x), **exactly)
    grads = []
    for each, softer in ((model, x / 1e4), (saved, x / 1e4)):
        softer = softer.clone().requires_grad_()
        nn.functional.cross_entropy(each(softer), torch.arange(4)).backward()
        grads.append(softer.grad)
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(model(x), logits, **exactly)  # the model itself goes on
    detach_era(model)
    model.reset_classifier(3)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_jit_of_other_precisions(dtype):
    layer = ERASoftmax(10, 0.3)
    layer.min_entropy = FLOOR  # as somebody who raises it step by step
    z = (100 * torch.randn(5, 10, generator=torch.Generator().manual_seed(0))).to(dtype)
    script = torch.jit.script(layer)
    torch.testing.assert_close(script(z), layer(z), **exactly)
    with pytest.raises(torch.jit.Error, match="num_classes=10"):
        script(z[:, :9])


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed(process_group):
    model = attach_era(adversarial(), FLOOR)
    distributed = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    assert_floored(distributed(images()))
    for each in (model, distributed):
        nn.functional.cross_entropy(each(images()), torch.arange(4)).backward()
    for parameter, other in zip(model.parameters(), distributed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, **exactly)


def test_a_model_of_torchvision():
    model = attach_era(torchvision.models.resnet18(num_classes=10, weights=None), FLOOR, head="fc").eval()
    with torch.no_grad():
        model.fc.weight.mul_(1e4)
    assert_floored(model(images()))
    assert entropy(detach_era(model)(images())).min() < FLOOR / 2


# --- what is refused ----------------------------------------------------------------------------------------


def hooked(kind):
    model = build(device="meta")
    getattr(model.fc, f"register_{kind}_hook")(lambda *_: None)
    return model


def bare():
    return nn.Sequential(nn.Linear(4, 10))


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (lambda: build("deit_tiny_distilled_patch16_224", "meta"), {"min_entropy": 2.2}, ValueError, "fall below"),
        (lambda: build("efficientvim_m1", "meta"), {}, ValueError, "does not know how it combines"),
        (lambda: build("volo_d1_224", "meta"), {}, ValueError, "without its other heads"),
        (lambda: build("dla46_c", "meta"), {}, ValueError, "fc is Conv2d.*ERASoftmax"),
        (lambda: timm.create_model("test_resnet", num_classes=0), {}, ValueError, "give num_classes"),
        (bare, {}, ValueError, "no classifier of timm.*head='0'"),
        (bare, {"head": "fc"}, ValueError, "no layer head='fc'.*head='0'"),
        (lambda: nn.DataParallel(build()), {}, ValueError, "head='module.fc'"),
        (lambda: build(features_only=True), {}, ValueError, "none of its layers is a Linear"),
        *(
            (partial(hooked, kind), {}, ValueError, "with hooks")
            for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")
        ),
        (build, {"min_entropy": 5.0}, ValueError, "choose a floor"),
        (build, {"temperature": 2.0}, TypeError, "temperature"),
        (build, {"dtype": torch.float16}, TypeError, "dtype"),
    ],
)
def test_refusals(make, arguments, error, message):
    model = make()
    before = modules(model)
    with pytest.raises(error, match=message):
        attach_era(model, **{"min_entropy": FLOOR, **arguments})
    assert modules(model) == before
    assert "reset_classifier" not in vars(model)


def test_a_name_is_no_model():
    with pytest.raises(TypeError, match="model is a str"):
        attach_era("resnet18", FLOOR)


MEANS = ["deit_tiny_distilled_patch16_224"] + [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("crossvit_tiny_240", "efficientformer_l1", "efficientformerv2_s0", "swiftformer_xs")
]


@pytest.mark.parametrize("name", MEANS)
def test_a_model_that_predicts_with_the_mean_of_its_heads(name):
    """Heads that give known logits, so that what is made of them can be seen."""
    model = attach_era(build(name), FLOOR)
    heads = [module for module in model.modules() if isinstance(module, ERALinear)]
    assert len(heads) == 2
    logits = 1e4 * torch.eye(10)[:2]
    with torch.no_grad():
        for head, bias in zip(heads, logits, strict=True):
            head.weight.zero_()
            head.bias.copy_(bias)
        output = model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    floored = ERASoftmax(10, FLOOR)(logits)
    torch.testing.assert_close(output[0], floored.mean(0))
    assert_floored(output)
    model.reset_classifier(7)
    assert sum(isinstance(module, ERALinear) for module in model.modules()) == 2
    attach_era(model, 1.35)  # which seven classes allow a mean, and four do not
    before = modules(model)
    with pytest.raises(ValueError, match=r"a floor as high as 1\.35 nats of 4 classes"):
        model.reset_classifier(4)
    assert modules(model) == before
    assert not any(isinstance(module, ERALinear) for module in detach_era(model).modules())


def test_logits_that_are_added_behind_the_head_break_its_floor():
    """What VOLO does, and why it is refused; without its second head it is not."""
    one_hot = torch.eye(10)
    floored = ERASoftmax(10, FLOOR)(1e4 * one_hot)
    assert_floored(floored)
    assert (entropy(floored + 0.5 * one_hot) < FLOOR - 1e-3).all()
    attach_era(build("volo_d1_224", "meta", use_aux_head=False), FLOOR)


@pytest.mark.slow
def test_every_family_of_timm():
    """Refused, or what comes out is the very tensor that the floored head gave; without numbers, on meta."""
    families = collections.defaultdict(list)
    for name in timm.list_models():
        if not name.endswith(registry.SUFFIX):
            families[_model_to_module[name]].append(name)
    refused = {}
    for names in families.values():
        name = min(names, key=lambda name: (all(word not in name for word in ("test", "tiny", "small")), name))
        model = build(name, "meta")
        try:
            attach_era(model, FLOOR)
        except ValueError as error:
            refused[name] = str(error)
            continue
        heads = [module for module in model.modules() if isinstance(module, ERALinear)]
        if len(heads) > 1:
            continue  # a mean, see above
        (head,) = heads
        floored = []
        head.register_forward_hook(lambda module, inputs, output: floored.append(output))
        x = torch.empty(2, *model.pretrained_cfg["input_size"], device="meta")
        outputs = [model.train(training)(x) for training in (False, True)]
        assert [id(x) for x in outputs] == [id(x) for x in floored], name
    assert len(refused) < len(families) / 4, refused


# --- names in timm's registry -------------------------------------------------------------------------------


def test_names_in_the_registry(tmp_path):
    plain = adversarial()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = timm.create_model(
        "test_resnet_era", num_classes=10, min_entropy=FLOOR, checkpoint_path=tmp_path / "plain.pth", floor="paper"
    ).eval()
    torch.testing.assert_close(model(images()), ERASoftmax(10, FLOOR, floor="paper")(plain(images())), **exactly)
    model.reset_classifier(7)
    assert model.fc.activation.floor == "paper"
    assert isinstance(timm.create_model("resnet18_era", num_classes=10, min_entropy=FLOOR).fc, ERALinear)


def test_pretrained_weights_are_those_of_the_plain_model(tmp_path):
    plain = timm.create_model("test_resnet")
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    there = {"file": str(tmp_path / "plain.pth")}
    model = timm.create_model("test_resnet_era", pretrained=True, pretrained_cfg_overlay=there, min_entropy=1.2)
    torch.testing.assert_close(model.fc.weight, plain.fc.weight, **exactly)


def test_a_tag_stays_behind_the_name():
    with torch.device("meta"):
        model = timm.create_model("resnet50_era.a1_in1k", num_classes=10, min_entropy=FLOOR)
    assert (model.pretrained_cfg["architecture"], model.pretrained_cfg["tag"]) == ("resnet50", "a1_in1k")


def test_a_floor_has_to_be_named():
    with pytest.raises(TypeError, match="min_entropy"):
        timm.create_model("resnet18_era", num_classes=10)


def test_registering_twice_does_nothing():
    names = timm.list_models()
    registry.register()  # timm warns of a name that is overwritten
    assert timm.list_models() == names
    assert len(names) == 2 * len([name for name in names if not name.endswith(registry.SUFFIX)])


# --- torchvision without its operators ----------------------------------------------------------------------


def run(script, torchvision=None, tmp_path=None):
    """What `script` prints with the shim alone, where `import torchvision` runs these lines."""
    if torchvision is not None:
        (tmp_path / "torchvision").mkdir(exist_ok=True)
        (tmp_path / "torchvision" / "__init__.py").write_text(torchvision)
    folder = os.path.dirname(torchvision_shim.__file__)
    prelude = f"import sys; sys.path.append({folder!r}); import torchvision_shim as shim\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path or "")},
    )
    return done.stdout.strip() or done.stderr.strip()


@pytest.mark.slow
def test_torchvision_without_its_operators():
    script = """
try:
    import torchvision
    print("healthy")
except RuntimeError as error:
    assert shim.MISSING == str(error), error
    assert shim.ensure() and shim.ensure()
    import torch
    from torchvision.transforms import CenterCrop
    print(CenterCrop(2)(torch.arange(16).reshape(1, 4, 4)).tolist())
"""
    printed = run(script)
    if printed == "healthy":
        pytest.skip("the torchvision that is installed fits its torch")
    assert printed == "[[[5, 6], [9, 10]]]"


def test_a_healthy_torchvision_is_left_alone(tmp_path):
    script = "print(shim.ensure(), shim._declared, 'torch' in sys.modules)"
    assert run(script, "", tmp_path) == "False [] False"  # what was not imported has no operator


def test_another_error_of_torchvision_comes_through(tmp_path):
    printed = run("shim.ensure()", "raise RuntimeError('operator torchvision::roi_align: no')", tmp_path)
    assert printed.endswith("\nRuntimeError: operator torchvision::roi_align: no")
    assert "During handling" not in printed


def test_what_a_failed_import_left_is_forgotten(tmp_path):
    torchvision = """
import torch
import torchvision.half
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "half.py").write_text("print('half')")
    printed = run("print(shim.ensure(), sys.modules['torchvision'].__file__)", torchvision, tmp_path)
    assert printed.splitlines() == ["half", "half", f"True {tmp_path}/torchvision/__init__.py"]


@pytest.mark.parametrize("head", [None, "fc"])
def test_a_compiled_model_is_refused(head):
    model = timm.create_model("test_resnet", num_classes=5)
    for compiled in (torch.compile(model), torch.nn.Sequential(torch.compile(model))):
        with pytest.raises(ValueError, match=r"the model is compiled: attach first, torch\.compile"):
            attach_era(compiled, 0.6, head=head)
    assert not isinstance(model.fc, ERALinear)
    compiled = torch.compile(attach_era(model, 0.6, head=head), backend="eager")
    compiled.reset_classifier(7)
    assert isinstance(compiled.get_classifier(), ERALinear)
    assert compiled(torch.randn(2, 3, 32, 32)).shape == (2, 7)
