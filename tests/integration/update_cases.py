"""Wrong input to the verbs that sign and install, as rows of test_bad_input."""

from __future__ import annotations

# Name, command, and what the line must hold; {world} and {tmp} as in Case.
UPDATES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "key made twice",
        "keygen {world}/ours.pem",
        ("ours.pem: it is there already", "keys are never replaced"),
    ),
    ("key below a file", "keygen {world}/text.mp4/k.pem", ("text.mp4/k.pem: cannot be written", "rights")),
    (
        "release missing",
        "sign {world}/bundle --key {world}/ours.pem",
        ("Missing option '--release'", "--help"),
    ),
    (
        "signed with a public key",
        "sign {world}/bundle --key {world}/ours.pub --release 1",
        ("ours.pub: expected a PEM file with a private key", "edge-sdk keygen"),
    ),
    (
        "signed with no key",
        "sign {world}/bundle --key {tmp}/no.pem --release 1",
        ("no.pem, found none", "keygen"),
    ),
    (
        "signed though damaged",
        "sign {world}/changed_graph --key {world}/ours.pem --release 1",
        ("'delta.onnx' is damaged", "Copy the bundle again"),
    ),
    (
        "signed with another's reference",
        "sign {world}/bundle --key {world}/ours.pem --release 1 --reference {world}/text.mp4",
        ("text.mp4: it is truncated, or no reference", "Copy it again"),
    ),
    (
        "unsigned",
        "run {world}/bundle {scene} --trust {world}/ours.pub",
        ("bundle: it is not signed", "edge-sdk sign BUNDLE"),
    ),
    (
        "of another key",
        "run {world}/signed {scene} --trust {world}/theirs.pub",
        ("signed: it is signed by key", "Take a bundle"),
    ),
    (
        "trusts a private key",
        "run {world}/signed {scene} --trust {world}/ours.pem",
        ("belongs on no device", "*.pub beside it"),
    ),
    (
        "trusts no key",
        "run {world}/signed {scene} --trust {world}/text.mp4",
        ("text.mp4: expected a PEM file with a public key",),
    ),
    (
        "journal cut",
        "run {world}/cut_device {scene}",
        ("journal.json: not readable as JSON", "The slots a and b beside it"),
    ),
    (
        "installed unsigned",
        "install {world}/bundle {world}/device --trust {world}/ours.pub",
        ("bundle: it is not signed", "edge-sdk sign BUNDLE"),
    ),
    (
        "installed without a key",
        "install {world}/bundle {world}/signed_device --no-probe",
        ("signed_device: it takes only signed bundles", "--trust KEY.pub"),
    ),
    (
        "installed without reference",
        "install {world}/bundle {world}/device",
        ("carries no reference.npz", "edge-sdk compare BUNDLE SOURCE"),
    ),
    (
        "installed though damaged",
        "install {world}/cut_graph {world}/device --no-probe",
        ("is truncated", "Copy"),
    ),
    (
        "installed over a trial",
        "install {world}/bundle {world}/trial_device --no-probe",
        ("'tiny-residual' is still on trial", "edge-sdk slots", "--confirm, or --rollback"),
    ),
    (
        "installed over other files",
        "install {world}/bundle {world}/labelled --no-probe",
        ("labelled: something else is in its place", "Name a new folder"),
    ),
    ("installed into a file", "install {world}/bundle {world}/text.mp4 --no-probe", ("cannot be", "rights")),
    (
        "trial of no time",
        "install {world}/bundle {world}/device --no-probe --healthy-s -1",
        ("'--healthy-s'", "greater than or equal to 0", "See: edge-sdk install --help"),
    ),
    (
        "slots of a bundle",
        "slots {world}/bundle",
        ("expected journal.json in", "edge-sdk install BUNDLE DEVICE"),
    ),
    ("slots of a cut journal", "slots {world}/cut_device", ("journal.json: not readable", "are bundles")),
    (
        "no way back",
        "slots {world}/device --rollback",
        ("slot b holds no bundle that ever ran healthy", "Install"),
    ),
    ("nothing to confirm", "slots {world}/device --confirm", ("no bundle is on trial", "edge-sdk slots")),
)
