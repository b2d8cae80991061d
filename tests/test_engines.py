"""What each engine is given, what it needs before any work, and what its log means."""

import logging

import pytest
from conftest import free_port

from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError, UsageError
from cxr_records.pipelines import engines
from cxr_records.pipelines.engines import Engine, cores, engine_named, quiet_beam


@pytest.mark.parametrize(
    ("runner", "given", "options"),
    [
        (
            "FlinkRunner",
            ["--flink_master=host:8081"],
            "--runner=FlinkRunner --flink_master=host:8081 --max_bundle_size=1 "
            "--number_of_execution_retries=3 --execution_retry_delay=1000",
        ),
        (
            "FlinkRunner",
            ["--max_bundle_size=4", "--number_of_execution_retries=0"],
            "--runner=FlinkRunner --max_bundle_size=4 --number_of_execution_retries=0 "
            "--execution_retry_delay=1000",
        ),
        ("DataflowRunner", [], "--runner=DataflowRunner --number_of_worker_harness_threads=1"),
        ("SparkRunner", [], "--runner=SparkRunner"),
        ("PortableRunner", ["--job_endpoint=embed"], "--runner=PortableRunner --job_endpoint=embed"),
        ("PrismRunner", ["--x=1"], "--runner=PrismRunner --x=1"),
        ("FnApiRunner", ["--x=1"], "--direct_running_mode=multi_processing --direct_num_workers=2 --x=1"),
        (
            "daskrunner",
            [],
            "--runner=apache_beam.runners.dask.dask_runner.DaskRunner --dask_partition_size=1",
        ),
        ("ours.cluster.DaskRunner", [], "--runner=ours.cluster.DaskRunner --dask_partition_size=1"),
        ("ours.cluster.Runner", [], "--runner=ours.cluster.Runner"),
        (
            "DaskRunner",
            [],
            "--runner=apache_beam.runners.dask.dask_runner.DaskRunner --dask_partition_size=1",
        ),
    ],
)
def test_each_engine_gets_the_settings_that_it_needs_and_the_users_go_before_them(runner, given, options):
    assert engine_named(runner, given, workers=2).options() == options.split()


def test_every_setting_is_an_option_that_beam_knows():
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.dask.dask_runner import DaskOptions  # noqa: F401 - known once imported

    # Flink's are known to its job server.
    kinds = [kind for kind in Engine.__subclasses__() if kind is not engines.FlinkEngine]
    ours = [word for kind in kinds for word in kind.settings]
    assert len(ours) == 2
    known = PipelineOptions(ours).get_all_options(retain_unknown_options=False)
    assert {word.split("=")[0].removeprefix("--").removeprefix("dask_") for word in ours} <= known.keys()


def test_a_job_stays_in_the_calling_process_where_others_would_not_pay():
    large = engines.SECONDS_WORTH_PROCESSES
    assert engine_named(workers=2).runs_here(num_specs=8, seconds=large - 1)
    assert engine_named(workers=2).runs_here(num_specs=1, seconds=large)
    assert engine_named(workers=1).runs_here(num_specs=8, seconds=large)
    assert not engine_named(workers=2).runs_here(num_specs=8, seconds=large)
    assert not engine_named("FlinkRunner", workers=1).runs_here(num_specs=1, seconds=0)
    assert engine_named(beam_options=["--x=1"]).options(here=True) == ["--x=1"]


def test_workers_are_forks_where_there_are_several_and_forks_are_safe(monkeypatch):
    assert engine_named(workers=3).forks == 3
    assert engine_named(workers=1).forks == engine_named("FlinkRunner", workers=3).forks == 0
    monkeypatch.setattr(engines.sys, "platform", "darwin")
    assert engine_named(workers=3).forks == 0


def test_an_engine_has_as_many_workers_as_there_are_cores_unless_told():
    assert engine_named().workers == cores()
    assert engine_named(workers=7).workers == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workers": 0}, "`workers=0`: expected at least 1"),
        (
            {"beam_options": ["stray"]},
            "`beam_options`: found 'stray', expected options of Beam's such as '--parallelism=4'",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(UsageError) as caught:
        engine_named(**arguments)
    assert str(caught.value) == said


def test_an_unknown_runner_is_told_those_that_beam_knows():
    with pytest.raises(UsageError) as caught:
        engine_named("Flink")
    said, _, names = str(caught.value).partition(": expected one of ")
    assert said == "`runner=Flink`"
    assert {"DaskRunner", "FlinkRunner", "FnApiRunner", "PrismRunner"} <= set(names.split(", "))


def test_beams_log_is_off_the_screen_and_that_of_others_stays(caplog):
    beam, filters = logging.getLogger("apache_beam.runners.some"), list(logging.getLogger().filters)
    with quiet_beam(debug=False):
        beam.error("hidden")
        logging.getLogger("theirs").error("seen")
        logging.error("seen too")
    beam.error("seen again")
    with quiet_beam(debug=True):
        beam.error("and with debug")
    assert logging.getLogger().filters == filters
    assert caplog.messages == ["seen", "seen too", "seen again", "and with debug"]


@pytest.mark.parametrize(
    ("runner", "option", "what"),
    [
        ("FlinkRunner", "flink_master", "Flink's master"),
        ("SparkRunner", "spark_master_url", "Spark's master"),
        ("PortableRunner", "job_endpoint", "Beam's job service"),
        ("DaskRunner", "dask_client_address", "Dask's scheduler"),
    ],
)
def test_a_service_that_does_not_answer_is_named_before_any_work(runner, option, what, java):
    address = f"127.0.0.1:{free_port()}"
    for words in ((f"--{option}={address}",), (f"--{option}", address)):
        with pytest.raises(CxrError) as caught:
            engine_named(runner, words).check()
        assert str(caught.value) == (
            f"--{option}={address}: {what} does not answer there (Connection refused); start it, or mend the "
            "address"
        )


def test_words_for_engines_that_beam_starts_are_no_addresses(java):
    for word in ("[auto]", "[local]", "local", "local[4]", "embed"):
        engine_named("FlinkRunner", (f"--flink_master={word}",)).check()
    with pytest.raises(UsageError, match="--flink_master=cluster: expected HOST:PORT"):
        engine_named("FlinkRunner", ("--flink_master=cluster",)).check()


@pytest.fixture
def java(tmp_path, monkeypatch):
    """A PATH with a java on it and nothing else."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.parametrize("name", ["flink", "spark"])
def test_a_missing_jar_and_a_missing_java_are_named(java, tmp_path, monkeypatch, name):
    runner = f"{name.capitalize()}Runner"
    with pytest.raises(CxrError) as caught:
        engine_named(runner, [f"--{name}_job_server_jar=/nowhere/jar"]).check()
    assert str(caught.value) == (
        f"--{name}_job_server_jar=/nowhere/jar: no such file; download Beam's job server and name it here"
    )
    engine_named(runner, [f"--{name}_job_server_jar=https://maven/jar"]).check()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CxrError) as caught:
        engine_named(runner).check()
    assert str(caught.value) == (
        f"`runner={runner}` starts Beam's job server, which needs Java; none is on the PATH"
    )
    engine_named(runner, [f"--{name}_submit_uber_jar"]).check()


def test_the_command_checks_before_it_reads_anything(lookalike, tmp_path, java, capfd):
    address = f"127.0.0.1:{free_port()}"
    words = ["build", "--images", str(lookalike.images), "--metadata", str(lookalike.metadata)]
    out = ["--out", str(tmp_path / "cxr14"), "--runner", "FlinkRunner"]

    code = run_command([*words, *out, "--", f"--flink_master={address}"])

    assert code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Error: --flink_master={address}: Flink's master does not answer there")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("runner", "log", "said"),
    [
        (
            "SparkRunner",
            "RuntimeError: Unable to fetch remote job server jar at http://maven/beam.jar: <urlopen error>.",
            "Beam's job server could not be fetched from http://maven/beam.jar; download it and name it with "
            "--spark_job_server_jar=FILE",
        ),
        (
            "DaskRunner",
            "ModuleNotFoundError: No module named 'distributed'",
            "Dask is not installed; pip install 'apache-beam[dask]'",
        ),
        (
            "PortableRunner",
            "ModuleNotFoundError: No module named 'cxr_records.pipelines'",
            "a worker lacks the package cxr_records; install the command's version there, with "
            "--sdk_container_image or in the environment of the worker pool (docker/README.md)",
        ),
    ],
)
def test_what_an_engine_says_becomes_the_remedy(runner, log, said, java):
    with pytest.raises(CxrError) as caught:
        engine_named(runner).raise_trouble(f"line\n{log}\nline")
    assert str(caught.value) == said
    engine_named(runner).raise_trouble("nothing that we know")
