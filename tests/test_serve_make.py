"""What a server is made of: models, scenarios, agents, and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import CHAIN

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.scenario.scenario import load_scenario, scenario_of
from sponge_env.serve import __main__ as command
from sponge_env.serve.make import check_stage_inputs, controllers


def test_a_model_takes_the_place_of_a_scenarios_own() -> None:
    for model in ("efficientnet-lite1", "some/file.onnx"):
        made = scenario_of(model)
        assert (made.name, made.profile, made.stages) == ("local", f"local:{model}", ())
        assert made.limits == load_scenario("local").limits
    assert scenario_of("efficientnet-lite0").profile == "local"
    assert scenario_of("ocr").name == "ocr"
    assert scenario_of("", "variants-local").name == "variants-local"
    assert scenario_of("efficientnet-lite1", "flash-crowd-local").name == "flash-crowd-local"
    for model, scenario in (("efficientnet-lite0", "ocr"), ("", "nowhere")):
        with pytest.raises(ConfigError):
            scenario_of(model, scenario)


def test_stages_have_to_hand_on_what_they_answer() -> None:
    check_stage_inputs(load_scenario("ocr"), [12, 0])
    check_stage_inputs(load_scenario("local"), [0])
    with pytest.raises(ConfigError, match="'name' are not the inputs of the next"):
        check_stage_inputs(CHAIN, [12, 0, 0])


def test_later_controllers_are_registered_ones() -> None:
    """What a client may ask for imports no code from elsewhere."""
    make = controllers("static", {"static": {"cores": 3}, "sponge-ip": {"variant": "chosen"}})
    assert type(make("static")).__name__ == "Static"
    assert type(make("sponge-ip")).__name__ == "SpongeIP"
    for name in ("os:system", "sb3:model.zip", "nobody"):
        with pytest.raises(ConfigError, match="unknown agent"):
            make(name)
    own = controllers("test_serve_engine:Fixed", {})
    assert type(own("test_serve_engine:Fixed")).__name__ == "Fixed"
    with pytest.raises(ConfigError, match="bound"):
        controllers("oracle", {})


@pytest.mark.parametrize(
    "arguments",
    ["--agent static --port 70000", "--agent static --grpc-port x", "--agent static --slo-ms 0",
     "--agent static --queue 0", "--agent static --limiter hope", "--model ocr"],
)  # fmt: skip
def test_a_mistyped_option_is_one_sentence(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments.split()) == 2
    error = capsys.readouterr().err
    name = arguments.split()[-2].removeprefix("--model").strip("-")
    assert name.replace("-", "_") in error.replace("-", "_")
    assert error.count("\n") == 1


def test_a_server_is_named_after_its_model() -> None:
    assert command.served_name("efficientnet-lite0", None) == "efficientnet-lite0"
    assert command.served_name("/a folder/my model.onnx", None) == "my-model"
    assert command.served_name("", "a/own.toml") == "own"
    assert command.served_name("module:Class", None) == "module-Class"


def test_a_server_that_could_not_go_on_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.outcome(None) == 0
    assert command.outcome(WorkerError("no replica starts")) == 1
    assert capsys.readouterr().err == "error: no replica starts\n"


def test_options_are_those_of_the_agent(tmp_path: Path) -> None:
    parse = command._parser().parse_args
    given = parse(["--agent", "ppo", "--policy", "p.safetensors", "--option", "ppo.x=1"])
    assert command._agent_options(given) == {"ppo": {"policy": "p.safetensors", "x": 1}}
    given = parse(["--agent", "ppo", "--grpc-port", "none", "--option", "server.max_rows=7"])
    options = command._server_options(given)
    assert (options.host, options.port, options.grpc_port) == ("127.0.0.1", 8000, None)
    assert (options.max_rows, command._agent_options(given)) == (7, {})
    with pytest.raises(ConfigError, match="put the token into SPONGE_TOKEN"):
        command._server_options(parse(["--agent", "ppo", "--option", "server.token=x"]))
