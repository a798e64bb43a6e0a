"""What perfusion-fleet serve refuses before anything starts, and what it asks of Serve."""

from __future__ import annotations

import pytest

from perfusion.commands.fleet import fleet_parser, main
from perfusion.commands.fleet_serve import _scale, _spec
from perfusion.errors import RequestError
from perfusion.fleet.replica import bundle_hash
from perfusion.fleet.serve_deployment import FleetScale, _numbers
from tests.conftest import TOY_BUNDLE


def parsed(*arguments):
    return fleet_parser().parse_args(["serve", *arguments])


@pytest.mark.parametrize(
    "arguments, code, sentence",
    [
        (["--host", "0.0.0.0"], 1, "there is no key"),
        (["--bundle", "/nowhere"], 1, "is not a bundle"),
        (["--library", "carrier-pigeon://loft"], 1, "cannot be opened"),
        (["--replicas", "many"], 2, "no number of replicas"),
        (["--replicas", "3:"], 2, "no number of replicas"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, code, sentence, capsys, monkeypatch):
    monkeypatch.delenv("PERFUSION_KEY", raising=False)
    assert main(["serve", *arguments]) == code
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_a_spec_is_what_the_options_say_with_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(TOY_BUNDLE.parent)
    spec = _spec(
        parsed(
            "--bundle", TOY_BUNDLE.name, "--library", "shop", "--batch-size", "4", "--cpus-per-replica", "2"
        )
    )
    assert spec.bundle == str(TOY_BUNDLE) and spec.bundle_hash == bundle_hash(str(TOY_BUNDLE))
    assert spec.library == str(TOY_BUNDLE.parent / "shop") and (spec.batch_size, spec.threads) == (4, 2)
    assert _spec(parsed("--library", "memory://shop")).library == "memory://shop"
    assert _spec(parsed("--bundle", str(TOY_BUNDLE))) == _spec(
        parsed("--bundle", str(TOY_BUNDLE))
    )  # no new version


def test_another_description_of_a_bundle_is_another_version(bundle_copy):
    before = _spec(parsed("--bundle", str(bundle_copy)))
    text = (bundle_copy / "bundle.json").read_text("utf-8")
    (bundle_copy / "bundle.json").write_text(text + "\n", "utf-8")
    assert _spec(parsed("--bundle", str(bundle_copy))) != before


def test_replicas_take_what_the_cluster_has_and_no_more():
    cluster = {"CPU": 4.0, "GPU": 2.0}
    scale = _scale(parsed("--replicas", "2:8"), cluster)
    assert (scale.least, scale.most, scale.cpus, scale.gpus, scale.spare) == (2, 8, 1, 1.0, 0)
    assert _scale(parsed("--replicas", "1", "--gpus-per-replica", "0.5"), cluster).spare == 3
    assert _scale(parsed("--replicas", "1", "--cpus-per-replica", "2"), {"CPU": 5.0}).spare == 1
    assert _scale(parsed("--replicas", "4", "--gpus-per-replica", "0.5"), cluster).gpus == 0.5
    with pytest.raises(RequestError, match="too few for 3 replicas"):
        _scale(parsed("--replicas", "3"), cluster)
    with pytest.raises(RequestError, match="too few for 3 replicas"):
        _scale(parsed("--replicas", "3", "--cpus-per-replica", "2"), {"CPU": 4.0})
    with pytest.raises(RequestError, match="the smaller number first"):
        _scale(parsed("--replicas", "2:1"), cluster)


def test_a_range_of_replicas_follows_the_length_of_their_queues():
    spec = _spec(parsed("--bundle", str(TOY_BUNDLE), "--batch-size", "4"))
    assert _numbers(spec, FleetScale(least=2, most=2)) == {"num_replicas": 2}
    asked = _numbers(spec, FleetScale(least=1, most=8))["autoscaling_config"]
    assert asked == {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8}
