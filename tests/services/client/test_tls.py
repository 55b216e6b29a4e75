"""Credentials from files, and files that will not do. That they work is shown in tests/services/gateway/test_tls.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.client import InvalidRequest, tls
from tests.services.certificates import issued_in


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    made = issued_in(tmp_path)
    with pytest.raises(InvalidRequest, match="key_file is None: must be given with cert_file"):
        tls(made.ca, cert_file=made.cert)
    with pytest.raises(InvalidRequest, match="cert_file is None: must be given with key_file"):
        tls(made.ca, key_file=made.key)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"ca_file is '.*nowhere': cannot be read: No such file"):
        tls(tmp_path / "nowhere")
