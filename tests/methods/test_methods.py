import copy
import hashlib
import inspect
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TEMPLATES, make_clip, make_set, model_hash
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.config import AS_RELEASED, PAPER, RPConfig
from rp_lib.features import FeatureStore, encode_all
from rp_lib.methods import (
    METHODS,
    FineTune,
    LinearProbe,
    Method,
    Reprogrammer,
    ResidualReprogrammer,
    ZeroShot,
    build_method,
    load_method,
)
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, load_tensors, save_tensors, tensors_sha256

SHORT = PAPER.changed(epochs=3, batch_size=8, warmup_steps=1, image_lr=0.1, text_lr=0.02, padding=0.2)
SETTINGS = {
    "zero-shot": {},
    "linear-probe": {"epochs": 3, "batch_size": 8},
    "zs-lp": {"epochs": 3, "batch_size": 8},
    "task-res": {"epochs": 3, "batch_size": 8, "lr": 0.01},
    "clap": {"epochs": 3, "batch_size": 8, "lr": 1e-3},
    "tip-adapter": {},
    "tip-adapter-f": {"epochs": 3, "batch_size": 8, "lr": 0.01},
    "fine-tune": {"epochs": 2, "batch_size": 8, "lr": 1e-3},
    "l2-sp": {"epochs": 2, "batch_size": 8, "lr": 1e-3},
    "lp-ft": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "probe_epochs": 3},
    "wise-ft": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "alpha": 0.3},
    "flyp": {"epochs": 2, "batch_size": 8, "lr": 1e-3},
    "lipsum-ft": {"epochs": 2, "batch_size": 8, "lr": 1e-3},
    "clip-lora": {"epochs": 3, "batch_size": 8, "lr": 0.01},
    "logit-ensemble": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "alpha": 0.3},
    "coop": {"epochs": 3, "batch_size": 8, "lr": 0.02},
    "locoop": {"epochs": 3, "batch_size": 8, "lr": 0.02},
    "maple": {"epochs": 3, "batch_size": 8, "lr": 0.02},
    "rp-image": {"config": SHORT},
    "attr-vr": {"config": SHORT, "nearest": 1},
    "rp-text": {"config": SHORT},
    "rp": {"config": SHORT},
    "rrp": {"config": SHORT, "alpha": 0.3},
}


def make(name: str, clip: FrozenCLIP, **more: object) -> Method:
    return build_method(name, clip, CLASSES, TEMPLATES, SETTINGS[name] | more)


@pytest.fixture(scope="module")
def fitted(clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet) -> dict[str, Method]:
    return {name: make(name, clip).fit(train_set, val_set) for name in METHODS}


@pytest.fixture(scope="module")
def rp(fitted: dict[str, Method]) -> Reprogrammer:
    return fitted["rp"]  # type: ignore[return-value]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < tolerance)


# All of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_interface(name: str, fitted: dict[str, Method], images: torch.Tensor, val_set: ImageSet):
    method = fitted[name]
    features, logits = method.features(images), method.logits(images)
    models = 2 if name == "logit-ensemble" else 1  # it keeps the features of both, side by side
    assert features.shape == (7, models * method.clip.embed_dim) and logits.shape == (7, len(CLASSES))
    assert features.dtype == logits.dtype == torch.float32 and torch.isfinite(logits).all()
    assert torch.equal(logits, method.head(features).detach())
    assert close(method.logits(images.float() / 255), logits, 0.03)  # bytes are resized to whole grey levels
    assert (features.norm(dim=1) - 1).abs().max() < 1e-5
    accuracy = (method.logits(val_set.images).argmax(1) == val_set.labels).float().mean()
    assert method.accuracy(val_set) == pytest.approx(float(accuracy))
    assert method.name == name and METHODS[name] is type(method)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("zero-shot", "tip-adapter")])
def test_learns_and_is_seeded(name: str, clip: FrozenCLIP, fitted: dict[str, Method], train_set, val_set, images):
    method = fitted[name]
    losses = method.history.losses
    assert sum(losses[-3:]) < sum(losses[:3])
    # A mixture with zero-shot is not trained; the curve is that of the method inside.
    watched = next((getattr(method, a) for a in ("rp", "fine_tuned") if hasattr(method, a)), method)
    assert method.history.accuracies[-1] == pytest.approx(watched.accuracy(val_set))
    assert method.trained_on == train_set.fingerprint
    torch.manual_seed(999)
    again, other = make(name, clip).fit(train_set), make(name, clip, seed=2).fit(train_set)
    assert torch.equal(again.logits(images), method.logits(images))
    assert not torch.equal(other.logits(images), method.logits(images))
    assert (method.logits(images) - make(name, clip).logits(images)).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["rp", "rrp", "fine-tune", "linear-probe"])
def test_the_backbone_never_changes(
    name: str, precision: str, train_set: ImageSet, val_set: ImageSet, images: torch.Tensor
):
    clip = make_clip()
    before = model_hash(clip.model), clip.logit_scale
    options = {} if name == "linear-probe" else {"precision": precision}
    method = make(name, clip, **options).fit(train_set, val_set)
    method.logits(images)
    assert (model_hash(clip.model), clip.logit_scale) == before
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters()) and not clip.model.training
    assert all(torch.isfinite(torch.tensor(method.history.losses)))


def test_the_backbone_never_gets_a_gradient(clip: FrozenCLIP, train_set: ImageSet):
    method = Reprogrammer(clip, CLASSES, TEMPLATES, SHORT)
    method.loss(train_set.images, train_set.labels).backward()
    assert all(p.grad is None for p in clip.model.parameters())
    assert {n for n, p in method.modules().named_parameters() if p.grad is not None} == {
        "image.W",
        "text.Theta",
        "text.b",
    }


@pytest.mark.parametrize("no_images", ["photo.jpg", [1, 2], torch.zeros(2, 3, 8, 16)])
def test_what_is_no_batch_of_squares_is_refused(no_images, clip: FrozenCLIP):
    with pytest.raises(RPLibError, match=r"images must be a tensor|squeezed into a square"):
        make("zero-shot", clip).logits(no_images)


@pytest.mark.parametrize("name", METHODS)
def test_get_params_build_the_method_again(name: str, clip: FrozenCLIP):
    method = make(name, clip)
    params = method.get_params()
    parameters = inspect.signature(METHODS[name].__init__).parameters
    assert {p for p in parameters if p not in ("self", "clip", "class_names", "templates", "settings")} - {
        "rp", "fine_tuned"
    } <= set(params)  # fmt: skip
    if "settings" in parameters:  # a relative of fine-tuning or of the probe takes what that takes, too
        assert {"lr", "weight_decay", "epochs", "seed"} <= set(params)
        assert ("schedule" in params) == isinstance(method, FineTune)
    again = build_method(name, clip, CLASSES, TEMPLATES, params)
    assert again.get_params() == params and again.metadata() == method.metadata()
    assert json.loads(json.dumps(method.metadata())) == method.metadata()


def test_bfloat16_trains_much_as_float32(clip: FrozenCLIP, train_set: ImageSet):
    for name in ("rp", "fine-tune"):
        one, two = (make(name, clip, precision=p).fit(train_set).history.losses for p in ("float32", "bfloat16"))
        assert one != two and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 0.15


def test_logits_of_the_loss_are_float32(clip: FrozenCLIP, train_set: ImageSet, monkeypatch: pytest.MonkeyPatch):
    """Cosines in bfloat16 times 100 would be off by up to 0.4; autocast must not get at them."""
    from rp_lib.methods import reprogrammer

    seen = []
    real = reprogrammer.reprogramming_loss
    monkeypatch.setattr(reprogrammer, "reprogramming_loss", lambda x, *rest: (seen.append(x.dtype), real(x, *rest))[1])
    make("rp", clip, precision="bfloat16").fit(train_set)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", METHODS)
def test_bad_tasks(name: str, clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    for classes in ((), ("cat", "cat")):
        with pytest.raises(RPLibError, match="class names must be distinct"):
            build_method(name, clip, classes, TEMPLATES)
    for empty in ("", " ", None):
        with pytest.raises(RPLibError, match=r"texts that are not empty|class_names of .* must be Sequence"):
            build_method(name, clip, ("cat", empty), TEMPLATES)
    with pytest.raises(RPLibError, match="one prompt template"):
        build_method(name, clip, CLASSES, ())
    for template in ("a photo", "{} {}", "a {{}}", "a {} {x}", "a {} }", "{0}", "{:>9}"):
        with pytest.raises(RPLibError, match=r"exactly one {}"):
            build_method(name, clip, CLASSES, ("a {}", template))
    for pair in (("Crane", "crane"), ("cafe\u0301", "caf\u00e9"), ("rock &amp; roll", "rock & roll"), ("a  b", "a b")):
        with pytest.raises(RPLibError, match=r"as the same tokens: one of the two|give the same prompt"):
            build_method(name, clip, ("cat", *pair), TEMPLATES)
    if name != "zero-shot":
        wrong = [make_set(8, classes=4), copy.copy(make_set(8))]
        object.__setattr__(wrong[1], "labels", None)
        with pytest.raises(RPLibError, match="labels 0 to 3 but the task has 3 classes"):
            make(name, clip).fit(wrong[0])
        with pytest.raises(RPLibError, match="no labelled images"):
            make(name, clip).fit(wrong[1])
    with pytest.raises(RPLibError, match="must be a tensor of shape"):
        make(name, clip).logits(images[0])
    with pytest.raises(RPLibError, match=r"in \[0, 1\]"):
        make(name, clip).logits(images.float())


def test_unknown_method_or_switch(clip: FrozenCLIP):
    with pytest.raises(UnknownName, match="did you mean fine-tune"):
        build_method("finetune", clip, CLASSES, TEMPLATES)
    with pytest.raises(UnknownName, match="did you mean padding"):
        build_method("rp", clip, CLASSES, TEMPLATES, {"config": {"paddng": 0.1}})


# Saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_round_trip(name: str, clip: FrozenCLIP, fitted: dict[str, Method], images: torch.Tensor, tmp_path: Path):
    method = fitted[name]
    method.save(tmp_path / "m.safetensors")
    for classes in (None, CLASSES, list(CLASSES)):
        loaded = load_method(tmp_path / "m.safetensors", make_clip(), classes)
        assert type(loaded) is type(method) and loaded.get_params() == method.get_params()
        assert torch.equal(loaded.logits(images), method.logits(images))
        assert torch.equal(loaded.features(images), method.features(images))
        assert loaded.trained_on == method.trained_on and loaded.class_names == method.class_names
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


KEYS = {
    "zero-shot": set(),
    "linear-probe": {"weight", "bias"},
    "zs-lp": {"weight"},
    "task-res": {"residual"},
    "clap": {"residual"},
    "tip-adapter": {"keys", "labels"},
    "tip-adapter-f": {"keys", "labels"},
    "rp": {"image.W", "text.Theta", "text.token_ids", "text.b"},
    "rrp": {"image.W", "text.Theta", "text.token_ids", "text.b"},
}


@pytest.mark.parametrize("name", KEYS)
def test_the_file_holds_what_was_trained_alone(name: str, fitted: dict[str, Method], tmp_path: Path):
    path = tmp_path / "m.safetensors"
    fitted[name].save(path)
    tensors, meta = load_tensors(path)
    assert set(tensors) == KEYS[name]
    assert path.stat().st_size < 40_000  # the backbone is 6 MB
    assert meta["backbone_sha256"] == fitted[name].clip.fingerprint and meta["class_names"] == list(CLASSES)
    if "image.W" in tensors:  # the inner square is never used and never kept
        assert tensors["image.W"][:, 6:-6, 6:-6].abs().max() == 0 and tensors["image.W"][:, 0].abs().min() > 0
    json.dumps(meta)


def test_fine_tuning_saves_the_image_tower_and_the_head_alone(fitted: dict[str, Method]):
    keys = set(fitted["fine-tune"].state_dict())
    tower = {f"visual.{k}" for k in fitted["fine-tune"].clip.model.visual.state_dict()}
    assert keys == tower | {"head.weight"}


@pytest.mark.parametrize("name", METHODS)
def test_refused_where_it_does_not_belong(name: str, clip: FrozenCLIP, fitted: dict[str, Method], tmp_path: Path):
    path = tmp_path / "m.safetensors"
    fitted[name].save(path)
    for other in (make_clip(1), make_clip(mean=0.4), make_clip(quick_gelu=True)):
        with pytest.raises(
            RPLibError, match=r"trained for the backbone 'tiny-0' .* load that backbone, or train again"
        ):
            load_method(path, other)
    for classes, where in (
        (("cat", "cup", "fire engine"), 1),
        (("dog", "fire engine", "cup"), 0),
        (CLASSES[:2], 2),
        ((*CLASSES, "tree"), 3),
    ):
        with pytest.raises(RPLibError, match=f"from index {where} on.*same order"):
            load_method(path, clip, classes)


@pytest.mark.parametrize("name", ["rp", "linear-probe", "fine-tune"])
def test_damaged_files_are_refused(name: str, clip: FrozenCLIP, fitted: dict[str, Method], tmp_path: Path):
    path = tmp_path / "m.safetensors"
    fitted[name].save(path)
    raw = path.read_bytes()
    for keep in (0, 7, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:keep])
        with pytest.raises(StorageError, match="damaged"):
            load_method(path, clip)
    path.write_bytes(raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:])  # one bit of one weight
    with pytest.raises(StorageError, match="altered"):
        load_method(path, clip)
    with pytest.raises(StorageError, match="does not exist"):
        load_method(tmp_path / "nothing", clip)
    save_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(RPLibError, match="no method saved by rp_lib"):
        load_method(path, clip)


def test_program_of_another_shape_or_other_words_is_refused(clip: FrozenCLIP, rp: Reprogrammer, tmp_path: Path):
    tensors = rp.state_dict()
    with pytest.raises(RPLibError, match=r"do not fit the settings of this 'rp': text\.Theta, text\.token_ids"):
        Reprogrammer(clip, CLASSES, TEMPLATES, SHORT.changed(text_rows="all")).load_state_dict(tensors)
    with pytest.raises(RPLibError, match=r"image\.W"):
        Reprogrammer(clip, CLASSES, TEMPLATES, SHORT.changed(use_image_program=False)).load_state_dict(tensors)
    other = Reprogrammer(clip, ("dog", "fire engine", "cup"), TEMPLATES, SHORT)
    with pytest.raises(RPLibError, match="trained on other words"):
        other.load_state_dict(tensors)
    assert torch.equal(
        other.text_program.Theta, Reprogrammer(clip, other.class_names, TEMPLATES, SHORT).text_program.Theta
    )


def test_unwritable_folder(fitted: dict[str, Method], tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another output folder"):
        fitted["rp"].save(tmp_path / "file" / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_metadata_is_readable_without_the_library(fitted: dict[str, Method], tmp_path: Path):
    fitted["rrp"].save(tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        meta = {k: json.loads(v) for k, v in file.metadata().items()}
    assert meta["method"] == "rrp" and meta["settings"]["alpha"] == 0.3 and meta["settings"]["config"] == asdict(SHORT)
    said = {k: v for k, v in meta.items() if k != "sha256"}
    content = f"{tensors_sha256(fitted['rrp'].state_dict())} {json.dumps(said, sort_keys=True)}"
    assert meta["sha256"] == hashlib.sha256(content.encode()).hexdigest()


def test_altered_alpha_in_the_header_is_noticed(fitted: dict[str, Method], tmp_path: Path, clip: FrozenCLIP):
    fitted["rrp"].save(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    assert data.count(b'\\"alpha\\": 0.3') >= 1
    (tmp_path / "m").write_bytes(data.replace(b'\\"alpha\\": 0.3', b'\\"alpha\\": 0.9'))
    with pytest.raises(RPLibError, match="altered"):
        load_method(tmp_path / "m", clip)


# Each of them --------------------------------------------------------------------------------------------


def test_zero_shot_by_hand(clip: FrozenCLIP, images: torch.Tensor):
    logits = ZeroShot(clip, CLASSES, TEMPLATES).logits(images)
    with torch.no_grad():
        expected = clip.logit_scale * clip.encode(images) @ clip.class_embeddings(CLASSES, TEMPLATES).T
    assert close(logits, expected)


def test_linear_probe_agrees_with_scikit_learn(clip: FrozenCLIP):
    data, test = make_set(60, side=16), make_set(60, seed=4, side=16)
    noisy = copy.copy(data)
    flip = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:12]
    labels = data.labels.clone()
    labels[flip] = (labels[flip] + 1) % 3  # not separable, so that the optimum is finite
    object.__setattr__(noisy, "labels", labels)
    decay = 1e-3
    # Both minimise the mean cross-entropy plus decay / 2 |W|^2.
    probe = LinearProbe(clip, CLASSES, TEMPLATES, epochs=1500, batch_size=60, lr=0.05, weight_decay=decay).fit(noisy)
    x, y = encode_all(clip, data.images).numpy(), labels.numpy()
    theirs = LogisticRegression(C=1 / (decay * 60), tol=1e-8, max_iter=5000).fit(x, y)
    z = encode_all(clip, test.images)
    p = theirs.predict_proba(z.numpy())
    ours = probe.head(z).softmax(1).numpy()
    assert abs(ours - p).max() < 0.02
    clear = p.max(1) - (p - (p == p.max(1, keepdims=True))).max(1) > 0.04
    assert (ours.argmax(1) == p.argmax(1))[clear].all() and clear.sum() > 30


@pytest.mark.parametrize("vision", [None, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}])
def test_fine_tune_starts_as_zero_shot(vision, images: torch.Tensor, train_set: ImageSet):
    clip = make_clip(vision=vision)
    tuned = make("fine-tune", clip)
    assert close(tuned.logits(images), ZeroShot(clip, CLASSES, TEMPLATES).logits(images), 1e-4)
    before = {k: v.clone() for k, v in tuned.state_dict().items()}
    tuned.fit(train_set)
    after = tuned.state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))
    assert not tuned.visual.training


def test_fine_tune_decays_matrices_only(clip: FrozenCLIP):
    groups = make("fine-tune", clip).parameter_groups()
    assert [g.weight_decay for g in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0].parameters) and all(p.ndim <= 1 for p in groups[1].parameters)
    tuned = sum(p.numel() for g in groups for p in g.parameters)
    assert tuned == sum(p.numel() for p in clip.model.visual.parameters()) + len(CLASSES) * clip.embed_dim


def test_rp_by_hand(clip: FrozenCLIP, rp: Reprogrammer, images: torch.Tensor):
    with torch.no_grad():
        programmed = rp.image_program(images / 255)
        features = F.normalize(clip.model.visual(clip.normalize(programmed)), dim=-1)
        expected = clip.logit_scale * features @ rp.text_program.class_embeddings().T
    assert close(rp.features(images), features) and close(rp.logits(images), expected, 1e-4)
    assert rp.program_images(images).shape == (7, 3, 32, 32) and rp.encoders == (rp,)


def test_rp_without_a_border_starts_as_zero_shot(clip: FrozenCLIP, images: torch.Tensor):
    plain = Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(padding=0))
    images = clip.prepare(images)
    assert close(plain.logits(images), ZeroShot(clip, CLASSES, TEMPLATES).logits(images))


def test_padding_too_large_for_the_backbone(clip: FrozenCLIP):
    with pytest.raises(RPLibError, match="padding of 16 on each side of 32 pixels leaves no image"):
        Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(padding=0.49))


def test_each_program_alone(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    zero = ZeroShot(clip, CLASSES, TEMPLATES)
    image_only = make("rp", clip, config=SHORT.changed(use_text_program=False)).fit(train_set)
    text_only = make("rp", clip, config=SHORT.changed(use_image_program=False)).fit(train_set)
    assert set(image_only.state_dict()) == {"image.W"} and set(text_only.state_dict()) == KEYS["rp"] - {"image.W"}
    assert torch.equal(image_only.class_embeddings(), zero.class_embeddings)
    assert torch.equal(text_only.features(images), zero.features(images)) and text_only.encoders == (clip,)
    assert not close(text_only.class_embeddings(), zero.class_embeddings, 1e-3)
    residual = ResidualReprogrammer(text_only, 0.5)
    assert close(residual.features(images), zero.features(images))


# The residual --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_alpha(alpha: float, clip: FrozenCLIP, rp: Reprogrammer, images: torch.Tensor):
    zero = ZeroShot(clip, CLASSES, TEMPLATES)
    end, other = (rp, zero) if alpha == 0 else (zero, rp)
    embeddings = {rp: rp.class_embeddings(), zero: zero.class_embeddings}
    for mixed in (
        ResidualReprogrammer(rp, alpha),
        ResidualReprogrammer(rp, 0.7).with_alpha(alpha),
    ):
        assert close(mixed.features(images), end.features(images), 1e-6)
        assert close(mixed.class_embeddings(), embeddings[end], 1e-6)
        assert close(mixed.logits(images), end.logits(images), 1e-4)
        assert not close(mixed.logits(images), other.logits(images), 1e-2)


def test_the_mix_by_hand(clip: FrozenCLIP, rp: Reprogrammer, images: torch.Tensor):
    zero = ZeroShot(clip, CLASSES, TEMPLATES)
    for unit in (True, False):
        rrp = ResidualReprogrammer(rp, 0.3)
        if not unit:
            plain = rp.copy()
            plain.config = rp.config.changed(renormalize_residual=False)
            rrp = ResidualReprogrammer(plain, 0.3)
        f = 0.7 * rp.features(images) + 0.3 * zero.features(images)
        w = 0.7 * rp.class_embeddings() + 0.3 * zero.class_embeddings
        f, w = (F.normalize(f, dim=-1), F.normalize(w, dim=-1)) if unit else (f, w)
        assert close(rrp.features(images), f, 1e-6) and close(rrp.class_embeddings(), w, 1e-6)
        assert close(rrp.logits(images), clip.logit_scale * f @ w.T, 1e-4)
        assert ((f.norm(dim=1) - 1).abs().max() < 1e-5) == unit


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_is_refused(alpha: float, clip: FrozenCLIP, rp: Reprogrammer):
    rrp = ResidualReprogrammer(rp)
    for use in (
        rrp.with_alpha,
        lambda a: ResidualReprogrammer(rp, a),
        lambda a: make("rrp", clip, alpha=a),
    ):
        with pytest.raises(RPLibError, match=r"alpha of .* must be at (least 0|most 1)"):
            use(alpha)


def test_another_alpha_costs_no_encoding(clip: FrozenCLIP, rp: Reprogrammer, val_set: ImageSet, monkeypatch):
    rrp, store, calls = ResidualReprogrammer(rp), FeatureStore(), []
    first = rrp.accuracy(val_set, store)
    for tower in (clip.model.visual, clip.model.transformer):
        monkeypatch.setattr(tower, "forward", lambda *a, **k: calls.append(1))
    for alpha in (0.0, 0.5, 1.0):
        assert 0 <= rrp.with_alpha(alpha).accuracy(val_set, store) <= 1
    assert not calls and rrp.with_alpha(rrp.alpha).accuracy(val_set, store) == first and rrp.alpha == PAPER.alpha


def test_residual_shares_the_program(rp: Reprogrammer, fitted: dict[str, Method], images: torch.Tensor):
    rrp = ResidualReprogrammer(rp)
    assert (
        rrp.rp is rp and rrp.trained_on == rp.trained_on and rrp.history is rp.history and rrp.encoders == (rp, rp.clip)
    )
    # fitted on its own, with the same seed, it holds the same program
    assert torch.equal(ResidualReprogrammer(rp, 0.3).logits(images), fitted["rrp"].logits(images))


# A store must not remember what an encoder was before it was trained -----------------------------------------


@pytest.mark.parametrize("name", ["rp", "rrp", "fine-tune"])
def test_stores_forget_at_fit(name: str, clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet):
    store, method = FeatureStore(), make(name, clip)
    before = store.get(method.encoders[0], val_set)
    method.fit(train_set, store=store)
    after = store.get(method.encoders[0], val_set)
    assert not close(before, after, 1e-4) and torch.equal(after, encode_all(method.encoders[0], val_set.images))


# Every switch changes something --------------------------------------------------------------------------


TRAINING = {
    "use_image_program": False, "use_text_program": False, "padding": 0.1, "placement": "overlay",
    "objective": "contrastive-identity", "loss": "focal", "text_rows": "all", "coupled_decay": True,
    "border_init": "zeros", "train_resolution": 0.25, "eval_resolution": 0.25, "image_lr": 0.05, "text_lr": 0.01,
    "image_decay": 0.0, "text_decay": 0.5, "epochs": 2, "batch_size": 6, "warmup_steps": 0,
}  # fmt: skip
BASE = SHORT.changed(loss="focal", objective="contrastive", image_decay=0.3)


def base_for(switch: str) -> RPConfig:
    if switch == "loss":
        return BASE.changed(loss="cross-entropy")
    if switch == "text_rows":  # rows that no prompt holds move by decay alone
        return BASE.changed(text_decay=0.5)
    return BASE


@pytest.mark.parametrize("switch", TRAINING)
def test_every_switch_of_training_counts(switch: str, clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    base = base_for(switch)
    assert getattr(base, switch) != TRAINING[switch]
    one = Reprogrammer(clip, CLASSES, TEMPLATES, base, precision="float32").fit(train_set)
    two = Reprogrammer(clip, CLASSES, TEMPLATES, base.changed(**{switch: TRAINING[switch]}), precision="float32").fit(
        train_set
    )
    if switch == "text_rows":
        other = [clip.tokenize(["dog wheel"])]
        with torch.no_grad():
            a, b = (m.text_program.encode(other[0]) for m in (one, two))
        assert not close(a, b, 1e-4)
    else:
        assert not close(one.logits(images), two.logits(images), 1e-4)


def test_identity_targets_are_harmless_with_cross_entropy(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor):
    """Row 8 of the ledger: the same gradient, so the same program."""
    one, two = (
        Reprogrammer(clip, CLASSES, TEMPLATES, SHORT.changed(objective=o), precision="float32").fit(train_set)
        for o in ("contrastive", "contrastive-identity")
    )
    assert close(one.logits(images), two.logits(images), 0.05)
    assert two.history.losses[0] > one.history.losses[0] + 0.5


def test_resolutions_are_those_of_training_and_evaluation(
    clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet, images
):
    config = SHORT.changed(train_resolution=0.25, eval_resolution=0.5)
    method = Reprogrammer(clip, CLASSES, TEMPLATES, config)
    seen = []
    real = method.image_program.place

    def place(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), method.image_program.resolution))
        return real(pixels)

    method.image_program.place = place  # type: ignore[method-assign]
    method.fit(train_set, val_set)
    assert set(seen) == {(True, 8), (False, 16)}
    assert method.history.accuracies[-1] == method.accuracy(val_set)
    assert method.image_program.resolution == 16


def test_as_released_runs_from_end_to_end(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor, tmp_path: Path):
    config = AS_RELEASED.changed(epochs=2, batch_size=8)
    rrp = ResidualReprogrammer(Reprogrammer(clip, CLASSES, TEMPLATES, config)).fit(train_set)
    assert rrp.rp.text_program.Theta.shape == (49408, 32)
    start = clip.model.token_embedding.weight
    unseen = ~torch.isin(torch.arange(49408), rrp.rp.text_program.tokens.unique())
    ratio = (rrp.rp.text_program.Theta[unseen] / start[unseen]).detach()
    assert ratio.max() < 1  # decoupled decay shrinks words that were never seen (row 9)
    assert (rrp.features(images).norm(dim=1) < 1 - 1e-4).all()  # not renormalised (row 5)
    rrp.save(tmp_path / "m")
    assert torch.equal(load_method(tmp_path / "m", clip).logits(images), rrp.logits(images))


def test_a_file_of_version_0_1_0_with_the_old_spelling_loads(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    rp = Reprogrammer(*task, AS_RELEASED.changed(epochs=1)).fit(tiny_benchmark.train)
    old = rp.metadata()
    old["settings"]["config"]["renormalise_residual"] = old["settings"]["config"].pop("renormalize_residual")
    with monkeypatch.context() as patch:
        patch.setattr(Reprogrammer, "metadata", lambda self: old)
        rp.save(tmp_path / "old.safetensors")
    loaded = load_method(tmp_path / "old.safetensors", tiny_clip)
    assert loaded.config == rp.config and not loaded.config.renormalize_residual
    torch.testing.assert_close(loaded.logits(tiny_benchmark.test.images), rp.logits(tiny_benchmark.test.images))
