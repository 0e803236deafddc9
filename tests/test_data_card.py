"""The data card says what the files are."""

import pytest

from tt_lib.files import PACKAGE_ROOT
from tt_lib.study.page import data_card

DATA = PACKAGE_ROOT / "data"


def test_data_card_is_up_to_date():
    assert (DATA / "README.md").read_text(encoding="utf-8") == data_card(DATA), (
        "run `tt card` and commit data/README.md"
    )


@pytest.mark.parametrize("name", ["pretrained/cifar10-ddpm-w64", "pretrained/cifar10-resnet", "stats"])
def test_every_shipped_file_names_the_command_that_made_it(name):
    rows = [line.split("|") for line in data_card(DATA).splitlines() if line.startswith(f"| `{name}")]
    assert rows
    for row in rows:
        assert row[3].strip(" `").startswith(("tt ", "torchrun ")), row


SECOND = DATA / "pretrained/cifar10-simclr"


@pytest.mark.skipif(not SECOND.is_dir(), reason="not shipped yet")
def test_the_second_network_is_good_enough_to_measure_with():
    from tt_lib.networks.feature_nets import read_config

    config = read_config(SECOND)
    assert config["probe_accuracy"] >= 0.75 and config["command"].startswith("tt features --kind simclr")
    assert (SECOND / "model.safetensors").stat().st_size <= 12e6


def test_a_folder_that_is_not_there_yet_is_no_error(tmp_path):
    assert data_card(tmp_path).endswith("| --- | ---: | --- | --- |\n")


def test_shipped_networks_are_small_enough_for_a_clone():
    assert (DATA / "pretrained/cifar10-ddpm-w64/diffusion_pytorch_model.safetensors").stat().st_size <= 40e6
    assert (DATA / "pretrained/cifar10-resnet/model.safetensors").stat().st_size <= 12e6


def test_the_classifier_is_accurate_enough_to_measure_with():
    from tt_lib.networks.feature_nets import read_config

    assert read_config(DATA / "pretrained/cifar10-resnet")["test_accuracy"] >= 0.95
