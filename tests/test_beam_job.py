"""What guards the pipeline that Beam runs."""

import dataclasses
import socket

import apache_beam as beam
import pytest

from cxr_records.errors import CxrError
from cxr_records.pipelines import beam_job


def test_a_pipeline_with_two_leaves_is_refused():
    pipeline = beam.Pipeline()
    specs = pipeline | "Specs" >> beam.Create([1, 2])
    _ = specs | "One" >> beam.Map(str)
    _ = specs | "Other" >> beam.Map(str)

    with pytest.raises(CxrError, match=r"the pipeline has 2 leaves \(One, Other\); expected one"):
        beam_job.check_linear(pipeline)


@pytest.mark.parametrize("name", ["python", "apache_beam", "cxr_records"])
def test_a_worker_of_another_version_is_named(name):
    here = beam_job.Versions.here()
    wanted = dataclasses.replace(here, **{name: "0.0"})

    with pytest.raises(CxrError) as caught:
        wanted.check_worker()
    here.check_worker()
    assert str(caught.value) == (
        f"found {name} {getattr(here, name)} on worker {socket.gethostname()}; the command has 0.0: give "
        "workers the command's versions (docker/README.md)"
    )
