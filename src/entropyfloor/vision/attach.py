"""`attach_era(model, 0.6)` gives an existing classifier a minimum entropy; `detach_era(model)` takes it away."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from entropyfloor import targets
from entropyfloor.torch.nn import ERALinear, ERASoftmax

Model = TypeVar("Model", bound=nn.Module)
L = TypeVar("L", bound=nn.Linear)

_LINEAR = ("torch.nn.modules.linear.Linear", "timm.layers.linear.Linear")
"""Layers that compute the product and nothing else. timm's differs from PyTorch's only in TorchScript."""
_MEANS = ("CrossVit", "EfficientFormer", "EfficientFormerV2", "SwiftFormer", "VisionTransformerDistilled")
"""Models of timm whose prediction is the plain mean of their heads' logits, which a test checks."""


def attach_era(model: Model, min_entropy: float, *, head: str | None = None, **options: Any) -> Model:
    """Put a floor under the entropy of a classifier's predictions, in place.

    The classifier's `Linear` becomes an `ERALinear` with the same parameters under the same names: checkpoints of
    the plain model load, an optimiser that was built before goes on, and what is saved loads into the plain model.
    `reset_classifier` of a timm model makes a floored head again. A model that has a floor already gets this one.

    The floor is under the softmax of each row of logits that the last layer gives. Where a model predicts with the
    mean of several heads, as distilled ones do, each head gets the floor, if `targets.mean_keeps_floor` says that
    their mean has it then. A timm model that combines its heads in another way is refused. What else a model does
    with its logits is not checked.

    Args:
        model: A timm model, or with `head` any module.
        min_entropy: Floor in nats, below log n.
        head: Name of the last layer, such as `"fc"`. A timm model knows its own.
        **options: `tau`, `floor`, `inverse` of `ERASoftmax`.

    Returns:
        The same model.

    Raises:
        ValueError: The floor is out of reach, there is no `Linear` to put it on, or the model is compiled; the
            message says why and what to do instead. The model is then as it was.
        TypeError: `model` is no module, or an option is unknown.

    Examples:
        >>> from entropyfloor.vision import attach_era
        >>> import timm
        >>> model = attach_era(timm.create_model("resnet18", num_classes=10), min_entropy=0.6)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: attach_era(model, min_entropy) takes the model")
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ValueError("the model is compiled: attach first, torch.compile(attach_era(model, min_entropy))")
    names = _head_names(model) if head is None else [head]
    try:
        layers = {name: model.get_submodule(name) for name in names}
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no layer head={head!r}: {_last_linear(model)}") from None
    floored = {name: _floored(layer, name, min_entropy, options) for name, layer in layers.items()}
    if len(names) > 1:
        _check_mean(next(iter(floored.values())).activation)
    for name, layer in floored.items():
        model.set_submodule(name, layer)
    if callable(getattr(model, "reset_classifier", None)):
        object.__setattr__(model, "reset_classifier", _ResetClassifier(model, min_entropy, head, options))
    return model


def detach_era(model: Model) -> Model:
    """Take the floor away again, in place: every `ERALinear` becomes a `Linear` with the same parameters.

    Returns:
        The same model; one without a floor as it was.

    Examples:
        >>> from entropyfloor.vision import attach_era, detach_era
        >>> import timm
        >>> model = attach_era(timm.create_model("test_resnet", num_classes=10), min_entropy=0.6)
        >>> plain = detach_era(model)
    """
    for name, module in list(model.named_modules()):
        if name and isinstance(module, ERALinear):
            model.set_submodule(name, _with_parameters_of(module, nn.Linear))
    vars(model).pop("reset_classifier", None)
    return model


class _ResetClassifier:
    """Replacement for a model's own `reset_classifier`, which would silently drop the floor.

    It is an object rather than a closure, so that copies and pickles of the model refer to themselves.
    """

    def __init__(self, model: nn.Module, min_entropy: float, head: str | None, options: dict[str, Any]) -> None:
        self._model, self._min_entropy, self._head, self._options = model, min_entropy, head, options

    def __call__(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """Make a new head of `num_classes` with the same floor; 0 removes the head, as in timm.

        Raises:
            ValueError: The floor is out of reach for so few classes; the model is then as it was.
        """
        if num_classes > 0:
            activation = ERASoftmax(num_classes, self._min_entropy, **self._options)
            if self._head is None and len(_head_names(self._model)) > 1:
                _check_mean(activation)
        plain: Any = type(self._model)
        plain.reset_classifier(self._model, num_classes, *args, **kwargs)
        if num_classes > 0:
            attach_era(self._model, self._min_entropy, head=self._head, **self._options)


def _head_names(model: Any) -> list[str]:
    """All names of the last layers of a timm model."""
    kind = type(model).__name__
    if not callable(getattr(model, "get_classifier", None)):
        raise ValueError(f"{kind} is no classifier of timm: {_last_linear(model)}")
    classifier = model.get_classifier()
    several = isinstance(classifier, tuple | list | nn.ModuleList | nn.ModuleDict)
    if (several and kind not in _MEANS) or getattr(model, "aux_head", None) is not None:  # which VOLO has
        raise ValueError(
            f"{kind} has several heads, and attach_era does not know how it combines them: {_INSTEAD}, or create "
            "the model without its other heads"
        )
    heads = list(classifier) if several else [classifier]
    return [
        name for name, module in model.named_modules(remove_duplicate=False) if any(module is h for h in heads)
    ]


def _last_linear(model: nn.Module) -> str:
    """How to name the last layer of a model that does not."""
    names = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
    if not names:
        return "none of its layers is a Linear, which the floor is put on"
    return f"name its last layer, for example attach_era(model, …, head={names[-1]!r})"


def _floored(linear: nn.Module, name: str, min_entropy: float, options: dict[str, Any]) -> ERALinear:
    """The same layer with a floor."""
    if isinstance(linear, nn.Identity):
        raise ValueError(f"the model has no classifier ({name} is Identity): give num_classes first")
    known = isinstance(linear, ERALinear) or f"{type(linear).__module__}.{type(linear).__name__}" in _LINEAR
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    if not known or any(hooks):
        layer = f"{type(linear).__name__}{' with hooks' if known else ''}"
        raise ValueError(f"{name} is {layer}, not a plain Linear: {_INSTEAD}")
    assert isinstance(linear, nn.Linear)
    ERASoftmax(linear.out_features, min_entropy, **options)  # refuses unknown options
    return _with_parameters_of(linear, ERALinear, min_entropy=min_entropy, **options)


_INSTEAD = "use nn.Sequential(model, ERASoftmax(n, min_entropy)), which needs only the logits"


def _check_mean(floor: ERASoftmax) -> None:
    options = floor.tau, floor.floor, floor.inverse
    if not targets.mean_keeps_floor(floor.num_classes, floor.min_entropy, *options):
        raise ValueError(
            f"the model predicts with the mean of several heads, which may fall below a floor as high as "
            f"{floor.min_entropy} nats of {floor.num_classes} classes: choose a lower one, or {_INSTEAD}"
        )


def _with_parameters_of(linear: nn.Linear, kind: type[L], **options: Any) -> L:
    """A layer of another kind that shares the parameters of `linear`."""
    has_bias = linear.bias is not None
    layer = kind(linear.in_features, linear.out_features, bias=has_bias, device="meta", **options)
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer.train(linear.training)
