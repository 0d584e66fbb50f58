/**
 * The driver contract. A `Hypervisor` makes VMs, a `Vm` is one that is held. Small on purpose: what only some can do is a small
 * extra interface plus a name in `capabilities`, checked at admission and never here.
 *
 * Manners that every driver keeps (the contract suite holds them to it):
 *  - `start` and `restore` leave nothing behind when they throw: no process, socket, file, port.
 *  - A VM lives outside the daemon's life, under its shim; `reconnect` finds it by pid *and* start time.
 *  - Methods of one `Vm` are called one at a time, except `kill`, `usage`, `inbound` and `exited`, which are allowed at any time.
 */
import type { Duplex } from 'node:stream'
import type { Capability } from '@dormouse/api/instance-states.ts'
import type { ProcessIdentity } from '../host/process-identity.ts'
import type { Step } from '../lib/step.ts'
import type { DiskRole, DiskSpec, NicSpec, VmSpec } from './vm-spec.ts'

export type { ProcessIdentity }

export type HypervisorName = 'qemu' | 'qemu-microvm' | 'cloud-hypervisor' | 'firecracker' | 'vz' | 'fake'

export interface Hypervisor {
  readonly name: HypervisorName
  readonly capabilities: ReadonlySet<Capability>
  /** Releases of its VMM that it works with, newest first: `53`, or `1.16.1`. Absent: those of the distributions that are supported. */
  readonly versions?: readonly string[]
  /** How many volumes a machine has room for: the disks `volume-0` and so on. */
  readonly volumeSlots: number
  /** Processors that a machine has at most; absent: as many as this daemon gives. */
  readonly mostVcpus?: number
  /** How it can put a guest on a network; absent: in every way there is. A guest without a network needs none of them. */
  readonly networks?: ReadonlySet<NicSpec['backend']>
  /** How many VMs wait to become an instance's, of a driver that has such. */
  readonly waiting?: number
  /** Bytes of memory that those have of their own. */
  waitingBytes?(): number
  /** Ends those that wait, and makes none until then; without a time, makes them again. Bytes of memory that they had of their own. */
  releaseWaiting?(untilMs: number | undefined): Promise<number>

  /** Is the binary there, is its version one we know, does KVM really run a guest? Answers, never throws. Cached per host kernel and VMM version. */
  probe(step: Step): Promise<HypervisorProbe>

  /**
   * Throws the reason when no VM of it can run on this host now, so that nothing is pulled or made for one. Absent for drivers that a daemon
   * cannot do without: a start says the same.
   */
  assertAvailable?(step: Step): Promise<void>

  /**
   * A running machine for `spec`: woken from its golden boot, or booted. Resolves when the machine runs; the guest may still be
   * on its way to the agent. `Started.how` says which way it came.
   */
  start(spec: VmSpec, step: Step): Promise<Vm>

  /** Recreates a VM from a capture, with the disks of `spec`. Resolves paused; the caller resumes. Throws `snapshot_unusable` with the reason when this host cannot. */
  restore(spec: VmSpec, capture: Capture, step: Step): Promise<Vm>

  /**
   * It has gone to sleep and is likely to wake: what a restore would do may be done before it is asked for. Returns at once; repeat is
   * harmless. Absent where nothing can be.
   */
  expectRestore?(spec: VmSpec, capture: Capture): void

  /** It wakes, is gone, or sleeps otherwise than was said. Resolves when nothing holds its files for it any more. Repeat is harmless. */
  unexpect?(id: string): Promise<void>

  /** Would `restore` take it? Looks at machine, manifest and device state, not at memory. Throws `snapshot_unusable` with the reason. */
  assertFits(spec: VmSpec, capture: Capture): Promise<void>

  /** Finds a VM that outlived the daemon. Undefined when it is gone or is not ours; then `lastExit` says how it ended. */
  reconnect(handle: VmHandle, step: Step): Promise<Vm | undefined>

  /** How the VM that ran in `runDir` ended, as its shim wrote it down; undefined when it never got so far or still runs. */
  lastExit(runDir: string): Promise<VmExit | undefined>

  /** Ends whatever runs in `runDir` and removes what it left there. For a start that was cut short by the daemon's own death. Repeat is harmless. */
  sweep(runDir: string): Promise<void>
}

export interface HypervisorProbe {
  readonly available: boolean
  readonly version?: string
  readonly acceleration?: 'kvm' | 'tcg'
  /** Why it is not available, or why it runs without KVM; a sentence. */
  readonly reason?: string
  /** What to do about it; a sentence. */
  readonly mend?: string
  /** Why no one may look into the memory of VMs here, so that each gets a copy of its own: it starts later and shares nothing. */
  readonly memoryOutOfReach?: string
}

export interface Vm {
  readonly handle: VmHandle
  /** How it came to run: a golden boot that was woken, for it or before it was asked for (`pool`), or a boot from the start. */
  readonly origin: 'golden' | 'boot' | 'restore' | 'adopted' | 'pool'
  /** Settles once, for any reason. Never rejects. */
  readonly exited: Promise<VmExit>

  /** Repeat is harmless. */
  pause(step: Step): Promise<void>
  /** Repeat is harmless. */
  resume(step: Step): Promise<void>
  /**
   * Takes memory and device state. Needs a paused VM, leaves it paused and usable. Writes only under `into`, an empty directory.
   * Resolves when everything has been read, so that the VM may go on; `stored` settles when the files are whole and flushed.
   */
  capture(into: string, step: Step): Promise<CaptureUnderWay>
  /**
   * Gives the VM a new top for the disk of `role`: an empty qcow2 layer as large as the disk, made and kept by the caller. Done while it
   * runs, as this takes the longest; from the commit on the layers there were are frozen for ever. When it throws, the VM has let go of
   * the layer. Of one disk one pivot is prepared at a time; it is committed or discarded before the next.
   */
  preparePivot(role: DiskRole, layer: { readonly path: string; readonly limitBytes?: number }, step: Step): Promise<Pivot>
  /**
   * What lies between the top and the bottom of a disk is copied into the top, while the VM runs; then those two alone are left, what was
   * copied is flushed, and the VM has let go of the others. The bottom stays: it is the largest and the most shared. May take minutes;
   * when the signal ends it, or it fails, the disk is as it was. Repeat is harmless, also after a daemon that died over it. Resolves with
   * the names of the files that are left, top first: those of the VM, which may never have come to use one that is on record.
   */
  flatten(role: DiskRole, step: Step): Promise<readonly string[]>
  /** Of drivers that can `disk_hotplug`. */
  readonly diskHotplug?: DiskHotplug
  /** Presses the power button; does not wait. The guest agent's own shutdown is the first choice, this the second. */
  requestShutdown(step: Step): Promise<void>
  /** Always ends, repeat is harmless; takes no signal. Resolves when the process is reaped and its run directory's sockets are gone. */
  kill(): Promise<VmExit>
  /** The byte stream to the guest agent. One at a time: a second connection ends the first. A guest that has just been woken may drop it: ask again. */
  connectGuest(step: Step): Promise<Duplex>
  /** Publishes and withdraws host ports while the VM runs. `port_in_use` when the host has it taken. Repeat is harmless. */
  setPorts(ports: readonly PortForward[], step: Step): Promise<void>
  /** How fast the guest's network may be from now on; what passes then counts, not what has passed. Repeat is harmless. */
  setBandwidth(bandwidth: Bandwidth, step: Step): Promise<void>
  /**
   * The budget of all its disks together from now on, as in `VmSpec.diskIoBps`; disks that came after the last call have none yet. Asked
   * only of drivers with `disk_limit_live`. Repeat is harmless.
   */
  setDiskRate(bytesPerSecond: number | undefined, step: Step): Promise<void>
  /**
   * Adds memory until it has so many bytes beyond what it began with, or asks the guest for some back; resolves when the guest has taken it
   * into use or given it up. Asked only of drivers with `memory_hotplug`. `invalid_state` when it was started without room for it, `conflict`
   * when the guest does not follow: what it has is told by `hotplugBytes` then. A stretch that is to go is first handed to `evacuate`, which
   * has the guest let go of it, or rejects: asked for by the VMM alone, a guest that cannot would try for ever. Repeat is harmless.
   */
  setHotplug(bytes: number, evacuate: Evacuate, step: Step): Promise<void>
  /** How much memory it has beyond what it began with, as the VMM says. */
  hotplugBytes(step: Step): Promise<number>
  /** What the VMM's process has used so far, read from the host. Undefined once it is gone. */
  usage(): Promise<VmUsage | undefined>
  /** Who is connected to its published ports, where it publishes them itself. Allowed at any time, also while it is paused. */
  inbound(ignored: IgnoredConnections, step: Step): Promise<Inbound>
}

export type Evacuate = (stretch: { readonly address: number; readonly bytes: number }, step: Step) => Promise<void>

/** Exchanges what is in the slots of volumes while the VM runs. The guest has to mount it, or to have let go of it. */
export interface DiskHotplug {
  /** Puts a disk into its slot, which is empty. When it throws, the VM has let go of it. Repeat is harmless. */
  insertDisk(disk: DiskSpec, step: Step): Promise<void>
  /** Repeat is harmless; what was written is in the files by then. */
  ejectDisk(role: DiskRole, step: Step): Promise<void>
  /** Repeat is harmless. */
  growDisk(role: DiskRole, bytes: number, step: Step): Promise<void>
}

/** A new top for a disk, which the VM holds open and does not use yet. */
export interface Pivot {
  /**
   * What the guest writes goes to the new layer from now on. Needs a paused VM, so that disk and memory are of one moment, and is as
   * quick as a pause wants it. Repeat is harmless. When it throws, `discard` tells whether it happened.
   */
  commit(step: Step): Promise<void>
  /**
   * The VM lets go of the layer, which may then be removed. False when it writes to the layer already: then the disk is as after the
   * commit. Repeat is harmless.
   */
  discard(step: Step): Promise<boolean>
}

/** Enough to find the VM again after a restart of the daemon, and to know that it is the same one. Stored with the instance. */
export interface VmHandle {
  readonly hypervisor: HypervisorName
  readonly runDir: string
  readonly shim: ProcessIdentity
  readonly vmm: ProcessIdentity
  /** Of the host; a pid and its start time of another boot mean nothing. */
  readonly bootId: string
  readonly startedAtMs: number
  /** What a capture of it is of; absent where the driver has no layers. */
  readonly machine?: MachineRecord
}

export interface MachineRecord {
  readonly base: BaseRef
  /** Of the base's pages. */
  readonly baseSum: string
  readonly memoryBytes: number
  /** What a machine must be like to wake from a capture of it. */
  readonly facts: Readonly<Record<string, string | number>>
}

/** `lost`: it is gone and no one saw how (the host rebooted, the shim was killed). */
export type VmExit =
  | { readonly kind: 'exited'; readonly code: number; readonly atMs: number }
  | { readonly kind: 'signaled'; readonly signal: string; readonly atMs: number }
  | { readonly kind: 'lost'; readonly atMs: number }

export interface VmUsage {
  readonly cpuSeconds: number
  readonly memoryRssBytes: number
  readonly memoryVmsBytes: number
  /** Of what is resident: no file's and no base's. */
  readonly memoryPrivateBytes: number
  /** From the guest's viewpoint. */
  readonly networkRxBytes: number
  readonly networkTxBytes: number
}

/** Bytes per second, of whole frames; absent: as fast as it goes. */
export interface Bandwidth {
  /** To the guest. */
  readonly downloadBps?: number
  /** From the guest. */
  readonly uploadBps?: number
}

/** TCP connections that others have opened to a guest and that are not over. */
export interface Inbound {
  readonly active: number
  /** For so long there has been none; 0 while there is one. Absent when there was none since anyone looks. */
  readonly quietMs?: number
}

/** Connections that do not count. */
export interface IgnoredConnections {
  /** Those from there: networks such as 10.0.0.0/8. */
  readonly sources: readonly string[]
  /** Those to these ports of the guest. */
  readonly ports: readonly number[]
}

export interface PortForward {
  readonly protocol: 'tcp' | 'udp'
  readonly hostIp: string
  readonly hostPort: number
  readonly guestPort: number
}

/**
 * The memory that a VM maps and never writes: a golden boot's, one that was consolidated from a capture, or none of its own (it was
 * booted from the start).
 */
export type BaseRef = `golden/${string}` | `base/${string}` | 'zero'

export interface CaptureUnderWay {
  /** What is being written: pages that differ from the base. */
  readonly bytes: number
  readonly stored: Promise<Capture>
}

/** Memory and device state of a VM that was paused: a directory whose files are never changed, and the base that they stand on. */
export interface Capture {
  readonly dir: string
  readonly base: BaseRef
  /** The base serves other VMs too, so it must be out of the reach of each. */
  readonly isShared?: boolean
}
