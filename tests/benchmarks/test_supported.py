"""All of timm's names for the classes that can be pooled: `benchmarks.supported`."""

from pathlib import Path

import pytest

from benchmarks import supported

DOC = Path(__file__).parents[2] / "docs" / "models.md"
# One of each kind of block, attention, positions, stem and head; the slow test has all.
SOME = (
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "naflexvit_base_patch16_map",
    "naflexvit_base_patch16_parfac_gap",
    "vit_base_mci_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_siglip_224",
    "vit_base_r26_s32_224",
    "vit_large_patch16_sapiens2",
    "vit_medium_patch16_rope_reg1_gap_256",
    "vit_pe_core_tiny_patch16_384",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_plus_patch16_dinov3",
)


@pytest.mark.parametrize("name", SOME)
def test_one_of_each_kind(name):
    row = supported.tried(name)
    assert row is not None and row.refused == ""


@pytest.mark.slow
def test_every_name_and_the_table_in_the_docs():
    rows = list(supported.sweep())
    of_these = [row for row in rows if row.kind != "NaFlexVit"]
    assert len(of_these) > 200
    assert sum(not row.refused for row in of_these) >= 0.95 * len(of_these)
    for row in rows:
        assert not row.refused or row.refused.startswith("block 1 is or holds a "), row
    assert DOC.read_text() == supported.table(rows)
