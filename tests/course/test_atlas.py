"""The atlas of dual encoders: what ships is complete, and a sample of it comes out again."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pandas as pd
import pytest
from rp_course.atlas import BLOCKS, TABLE, Words, build, costs, measured, summary, survey, write

COUNTS = ("image_parameters", "parameters", "image_tflop", "text_tflop", "fine_tuning_tflop")
WORDS = ("programs", "text_tower", "preparation", "activation", "tokenizer", "context", "image_size", "tags")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(TABLE, keep_default_na=False).set_index("model")


def test_the_table_holds_every_architecture(table: pd.DataFrame):
    versions = set(table["open_clip"])
    assert len(versions) == 1 and table.index.is_unique and set(table["programs"]) <= {"both", "image", "none"}
    if versions == {open_clip.__version__}:
        assert set(table.index) == set(open_clip.list_models())
    acts = table[table["programs"] == "both"]
    for difference in ("image_difference", "text_difference"):  # none is silently different
        assert pd.to_numeric(acts[difference]).max() < 1e-5
    assert (acts["border_gradient"] == "True").all() and (acts["prompt_gradient"] == "True").all()
    assert (table.loc[table["programs"] == "none", "reason"].str.len() > 10).all()


def test_the_page_says_what_the_table_holds():
    full = pd.read_csv(TABLE)
    page = (Path(__file__).parents[2] / "notebooks" / "pages" / "encoders.md").read_text(encoding="utf-8")
    assert summary(full) in page and measured(full) in page
    ratio = full.loc[full["programs"] != "none", "rp_over_fine_tuning"]
    assert (
        f"a step of RP takes {ratio.min():.2f} to {ratio.max():.2f} of one of fine-tuning, {ratio.median():.2f} at the "
        f"median; {(ratio <= 0.7).sum()} of {len(ratio)} take at most 0.70."
    ) in page.replace("\n", " ")
    assert ratio.notna().all() and full["border_seconds"].count() >= 12


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP2"])
def test_a_sample_comes_out_again(name: str, table: pd.DataFrame):
    row, shipped = survey(name), table.loc[name]
    if shipped["open_clip"] != open_clip.__version__:
        pytest.skip("the table is of another open_clip")
    assert {key: str(row[key]) for key in WORDS} == {key: str(shipped[key]) for key in WORDS}
    assert max(row["image_difference"], row["text_difference"]) < 1e-5
    if shipped["parameters"]:  # costs are counted for some
        row |= costs(name)
        assert {key: row[key] for key in COUNTS} == pytest.approx(
            {key: float(shipped[key]) for key in COUNTS}, rel=1e-3
        )


def test_rows_that_are_there_are_kept(tmp_path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "atlas.csv"
    pd.DataFrame({"model": ["RN50"], "programs": ["mine"]}).to_csv(out, index=False)
    found = write(["RN50", "roberta-ViT-B-32"], out).set_index("model")
    assert found.loc["RN50", "programs"] == "mine"
    if found.loc["roberta-ViT-B-32", "programs"] == "none":
        assert "transformers" in found.loc["roberta-ViT-B-32", "reason"]


def test_stages_are_cut_and_weights_are_drawn():
    model = build(open_clip.get_model_config("ViT-B-16-SigLIP2"))
    assert len(model.visual.trunk.blocks) == len(model.text.transformer.resblocks) == BLOCKS
    for name, weight in model.named_parameters():
        assert weight.isfinite().all() and (weight.numel() < 2**16 or 0.001 < weight.std() < 1.1), name


def test_words():
    tokens = Words(6, [5], [1], 0)(["a cat", "", "one two three four five six", "cat"])
    assert tokens[1].tolist() == [5, 1, 0, 0, 0, 0] and tokens[2, -1] == 1 and (tokens[2] >= 1).all()
    assert tokens[0, 2] == tokens[3, 1] >= 10  # a word is the same number in every place and in every process
