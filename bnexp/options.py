"""What can be chosen on each axis, which options each choice has, and how an option is checked."""

from __future__ import annotations

from typing import Any

# The options that exist for each choice. A test holds these tables against nn, data, engine and probes, and against
# configs/. What a user's package adds is not in them: its options are its own.
NORM_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batch": ("eps", "momentum", "affine", "freeze_at"),
    "group": ("eps", "affine", "num_groups"),
    "layer": ("eps", "affine"),
    "instance": ("eps", "affine"),
    "ghost": ("eps", "momentum", "affine", "ghost_size"),
    "batch_renorm": ("eps", "momentum", "affine", "r_max", "d_max", "ramp_steps"),
    "noisy_batch": ("eps", "momentum", "affine", "noise_shift", "noise_scale", "noise_jitter"),
    "group_ws": ("eps", "affine", "num_groups"),
    "filter_response": ("eps", "threshold"),
}
_RECURRENT = ("sequence", "permute", "step_statistics", "gamma_init", "initial_noise", "train_steps")
MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "cnn": (),
    "vgg": (),
    "resnet": ("preactivation", "branch"),
    "mlp": (),
    "lstm": _RECURRENT,
    "gru": _RECURRENT,
}
OPTIM_OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
    "rmsprop": ("alpha", "eps", "momentum"),
}
SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("milestones", "factor"),
    "cosine": (),
    "onecycle": ("peak_at", "start_factor", "end_factor"),
}
PROBE_OPTIONS: dict[str, tuple[str, ...]] = {
    "gradients": ("every",),
    "activations": ("every",),
    "shift": ("every",),
    "landscape": ("every",),
    "affine": ("every",),
    "running": ("every",),
    "statistics": (),
    "sampling": (),
    "robustness": (),
    "cost": (),
}
DATASETS = ("digits", "mnist", "fashion_mnist", "kmnist", "svhn", "cifar10", "cifar100", "folder")
SPLITS = ("fixed", "per_seed")
AUGMENTS = ("none", "flip", "crop", "crop_flip")
PLACEMENTS = ("before", "after")
AFFINES = ("both", "scale", "shift", "none")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "leaky_relu")
INITS = ("he", "xavier", "default", "normal", "orthogonal", "lsuv")
DROPOUT_PLACEMENTS = ("before", "after", "head")
BRANCHES = ("plain", "skipinit", "fixup")
SEQUENCES = ("rows", "pixels")
STEP_STATISTICS = ("per_step", "shared")
TRAINABLE = ("all", "norm")
PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda", "mps")
EXECUTORS = ("auto", "serial", "process", "stacked", "graph")

# how each option of a norm, model or probe is read: the method of Section, and its bounds
CHECKS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("norm", "eps"): ("number", {"above": 0}),
    ("norm", "momentum"): ("optional_number", {"above": 0, "at_most": 1}),
    ("norm", "affine"): ("choice", {"choices": AFFINES}),
    ("norm", "freeze_at"): ("optional_integer", {"at_least": 0}),
    ("norm", "num_groups"): ("integer", {"at_least": 1}),
    ("norm", "ghost_size"): ("integer", {"at_least": 1}),
    ("norm", "r_max"): ("number", {"at_least": 1}),
    ("norm", "d_max"): ("number", {"at_least": 0}),
    ("norm", "ramp_steps"): ("integer", {"at_least": 1}),
    ("norm", "noise_shift"): ("number", {"at_least": 0}),
    ("norm", "noise_scale"): ("number", {"at_least": 1}),
    ("norm", "noise_jitter"): ("number", {"at_least": 0}),
    ("norm", "threshold"): ("boolean", {}),
    ("model", "preactivation"): ("boolean", {}),
    ("model", "branch"): ("choice", {"choices": BRANCHES}),
    ("model", "sequence"): ("choice", {"choices": SEQUENCES}),
    ("model", "permute"): ("boolean", {}),
    ("model", "step_statistics"): ("choice", {"choices": STEP_STATISTICS}),
    ("model", "gamma_init"): ("number", {"above": 0}),
    ("model", "initial_noise"): ("number", {"at_least": 0}),
    ("model", "train_steps"): ("optional_integer", {"at_least": 1}),
    ("probes", "every"): ("integer", {"at_least": 1}),
}
