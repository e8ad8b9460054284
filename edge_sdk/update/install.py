"""Installing a bundle into the slot of a device folder that does not run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pydantic import Field

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, EdgeSdkError, OutputError, SignatureError, UpdateError
from edge_sdk.files import require_writable
from edge_sdk.manifest import MANIFEST, SIGNATURE
from edge_sdk.settings import Settings
from edge_sdk.signing import Trust
from edge_sdk.update.device import Device, confirmed, is_device, other
from edge_sdk.update.disk import Disk
from edge_sdk.update.journal import Journal, SlotFacts, SlotName, TrialSettings, Update, now, write_journal
from edge_sdk.update.probe import REFERENCE, ProbeReport, ProbeSettings, reference_of, run_probe

Probe = Callable[[Bundle, Path, ProbeSettings], ProbeReport]


class InstallSettings(Settings):
    """What is installed where.

    Args:
        bundle: the new bundle.
        device: the device folder; made where there is none.
        trust: accept only bundles that this policy accepts, and no release older than the newest confirmed one.
        reference: file of the reference to probe with; None for the one that the bundle carries.
        probe: what it must show on this device; None installs it without a probe.
        trial: when it is confirmed, and when the old one comes back.
    """

    bundle: Path
    device: Path
    trust: Trust | None = None
    reference: Path | None = None
    probe: ProbeSettings | None = Field(default_factory=ProbeSettings)
    trial: TrialSettings = Field(default_factory=TrialSettings)


class Installed(Settings):
    """What was installed.

    Args:
        device: the device folder.
        slot: where in it.
        bundle: the bundle's name.
        release: of its signature, where a policy had it checked.
        state: ``"trial"``, or ``"confirmed"`` where there is no older bundle to come back.
        trial: how it is tried.
        probe: what the probe found; None without one.
    """

    device: Path
    slot: SlotName
    bundle: str
    release: int | None
    state: str
    trial: TrialSettings
    probe: ProbeReport | None


def install(settings: InstallSettings, *, disk: Disk | None = None, probe: Probe = run_probe) -> Installed:
    """Install a bundle: check it, copy it into the free slot, probe it there, and switch to it on trial.

    Whatever happens on the way, the bundle that ran before is still the one that runs; a program that has it open is
    not disturbed. The first bundle of a device has none before it and is confirmed at once.

    Args:
        settings: what is installed where.
        disk: what changes the file system.
        probe: what probes a bundle.

    Raises:
        MissingFileError, FileFormatError, BundleError: the bundle is not whole, or there is no reference to probe with.
        SignatureError: the policy does not accept it, it is older than what was confirmed here, or there is no policy
            and the device takes only signed bundles.
        UpdateError: the probe failed, another installation is going on, or an update is still on trial.
        OutputError: the device folder cannot be written to, or is something else.
    """
    bundle = Bundle.open(settings.bundle, trust=settings.trust)
    reference = None if settings.probe is None else reference_of(bundle, settings.reference)
    device = _device(settings.device, disk or Disk())
    with device.installing():
        journal = device.journal()
        _check_allowed(journal, bundle, settings.trust, device.path)
        slot = other(journal.current)
        device.change(lambda known: _begun(known, slot, settings.trial))
        try:
            staged = _stage(device, bundle, slot, settings.trust)
            device.change(lambda known: _staged(known, slot, staged))
            report = None
            if settings.probe is not None and reference is not None:
                device.change(lambda known: known.with_state("probing"))
                if settings.reference is None:
                    reference = staged.path / REFERENCE
                report = _passed(probe(staged, reference, settings.probe), bundle)
            journal = device.change(lambda known: _switched(known, settings.trust))
        except BaseException as error:
            _give_up(device, slot, error)
            raise
    return Installed(
        device=device.path,
        slot=slot,
        bundle=bundle.manifest.name,
        release=journal.slots[slot].release,
        state="confirmed" if journal.on_trial is None else "trial",
        trial=settings.trial,
        probe=report,
    )


def _device(path: Path, disk: Disk) -> Device:
    """The device folder, made where there is none.

    Raises:
        OutputError: something else is there, or it cannot be made.
    """
    if not is_device(path):
        require_writable(path)
        # What begins with a dot is left of a first installation that was cut off at its very beginning.
        if path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise OutputError(
                f"device folder {path}: something else is in its place.",
                hint="Name a new folder for the slots.",
            )
        missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
        for folder in reversed(missing):
            disk.mkdir(folder)
            disk.sync(folder.absolute().parent)
        write_journal(disk, path, Journal())
    return Device(path, disk=disk)


def _check_allowed(journal: Journal, bundle: Bundle, trust: Trust | None, where: Path) -> None:
    update = journal.on_trial
    if update is not None:
        raise UpdateError(
            f"device folder {where}: '{journal.slots[update.slot].bundle}' is still on trial, and the other slot holds "
            "what comes back if it fails.",
            hint=f"Let it run until it is confirmed, or decide: edge-sdk slots {where} --confirm, or --rollback.",
        )
    if trust is None and journal.signed_only:
        raise SignatureError(
            f"device folder {where}: it takes only signed bundles, and no trusted key was named.",
            hint="Name one with: edge-sdk install BUNDLE DEVICE --trust KEY.pub",
        )
    floor = journal.floor
    if floor is None or bundle.signature is None:
        return
    release = bundle.signature.signed.release
    same = bundle.manifest_sha256 == floor.manifest_sha256
    if release < floor.release or (release == floor.release and not same):
        raise SignatureError(
            f"bundle {bundle.path}: it is release {release}, and release {floor.release} was confirmed on this device.",
            hint="Install a newer one; edge-sdk slots DEVICE --rollback goes back to the bundle before.",
        )


def _begun(journal: Journal, slot: SlotName, trial: TrialSettings) -> Journal:
    """The journal once ``slot`` may be overwritten."""
    number = 1 if journal.update is None else journal.update.number + 1
    update = Update(
        number=number, slot=slot, previous=journal.current, state="staging", trial=trial, changed=now()
    )
    kept = {name: facts for name, facts in journal.slots.items() if name != slot}
    return journal.changed(update=update, slots=kept)


def _stage(device: Device, bundle: Bundle, slot: SlotName, trust: Trust | None) -> Bundle:
    """Copy a bundle into ``slot`` so that it lasts, and open the copy; it is the copy that counts."""
    disk, target = device.disk, device.slot(slot)
    disk.remove(target)
    disk.mkdir(target)
    names = [*bundle.manifest.files, *([SIGNATURE] if (bundle.path / SIGNATURE).is_file() else []), MANIFEST]
    folders = {parent for name in names for parent in PurePosixPath(name).parents}
    for folder in sorted(folders - {PurePosixPath(".")}):  # parents come first
        disk.mkdir(target / folder)
    for name in names:
        disk.copy(bundle.path / name, target / name)
        disk.sync(target / name)
    for folder in sorted(folders):
        disk.sync(target / folder)
    disk.sync(device.path)
    staged = Bundle.open(target, trust=trust)
    if staged.manifest_sha256 != bundle.manifest_sha256:
        raise BundleError(
            f"bundle {bundle.path}: it was changed while it was copied.", hint="Install it again."
        )
    return staged


def _staged(journal: Journal, slot: SlotName, bundle: Bundle) -> Journal:
    signed = None if bundle.signature is None else bundle.signature.signed
    facts = SlotFacts(
        bundle=bundle.manifest.name,
        manifest_sha256=bundle.manifest_sha256,
        release=None if signed is None else signed.release,
        key_id=None if signed is None else signed.key_id,
        installed=now(),
    )
    return journal.with_state("staged").changed(slots={**journal.slots, slot: facts})


def _passed(report: ProbeReport, bundle: Bundle) -> ProbeReport:
    if report.problem:
        raise UpdateError(
            f"bundle {bundle.path}: it failed its probe on this device: {report.problem.rstrip('.')}.",
            hint="The bundle that ran before still does; see: edge-sdk compare BUNDLE --reference FILE",
        )
    return report


def _switched(journal: Journal, trust: Trust | None) -> Journal:
    """The journal with the new bundle as the one that runs."""
    update = journal.update
    if update is None:
        return journal
    journal = journal.with_state("trial").changed(
        current=update.slot, signed_only=journal.signed_only or (trust is not None and trust.required)
    )
    return confirmed(journal) if update.previous is None else journal


def _give_up(device: Device, slot: SlotName, error: BaseException) -> None:
    """Leave the slot empty; what cannot be cleared now, the next installation clears."""

    def failed(journal: Journal) -> Journal:
        kept = {name: facts for name, facts in journal.slots.items() if name != slot}
        reason = " ".join(str(error).split()) or type(error).__name__
        return journal.with_state("failed", reason=reason).changed(slots=kept)

    with suppress(EdgeSdkError, OSError):
        if device.journal().current == slot:
            return  # the switch itself was interrupted after it had happened
        device.change(failed)
        device.disk.remove(device.slot(slot))
    # The names of what was removed need not last: the journal no longer knows the slot.
