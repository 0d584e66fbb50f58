import type { Bandwidth, PortForward } from './hypervisor.ts'

/** All that a driver needs to run one machine. Made by `instances/vm-spec-of.ts` from an instance's record; holds no policy. */
export interface VmSpec {
  /** The instance's id; also the VM's name in process lists. */
  readonly id: string
  /** A directory that is this VM's alone: sockets, pid files, exit record. The driver makes and empties it. */
  readonly runDir: string
  readonly vcpus: number
  readonly memoryMib: number
  /** Memory that is added once it runs, and that can be changed then; absent: it has no room for any. In blocks of 128 MiB. */
  readonly hotplugMib?: number
  /** Each has the slot of its role; a driver fills the free slots with empty disks, so that every golden boot has the same set. */
  readonly disks: readonly DiskSpec[]
  readonly nic?: NicSpec
  /** Devices of the host that it drives itself. They are ready for it: vfio-pci has them, and its user may open their groups. */
  readonly hostDevices?: readonly HostDeviceSpec[]
  /** Where the shim drains what must never block. */
  readonly logs: LogFiles
  /** The unprivileged user that the VMM runs as when the daemon is root. Its own for each VM, so that one VMM cannot touch another. */
  readonly user?: { readonly uid: number; readonly gid: number }
  /** Bytes per second, read and written, of all its disks together; after a pause four seconds' worth may come at once. Absent: no limit. */
  readonly diskIoBps?: number
  /** Boot from the start, with a kernel that draws secrets of its own, instead of waking the golden boot. */
  readonly freshBoot?: boolean
}

/** A volume's number says which of their slots it is in, and stays the same for as long as a guest may know it there. */
export type DiskRole = 'rootfs' | 'overlay' | 'modules' | `volume-${number}`

export interface DiskSpec extends DiskLayer {
  /** Also the disk's serial: the guest finds it by this, never by letter. */
  readonly role: DiskRole
  readonly readOnly: boolean
  /** The layers below, topmost first: only read, and shared with whoever else stands on them. */
  readonly backing?: readonly DiskLayer[]
}

export interface DiskLayer {
  readonly path: string
  /** Named, never probed: a guest that writes a qcow2 header onto its raw disk must not gain a backing file. */
  readonly format: 'raw' | 'qcow2'
  /** Of a qcow2 layer on top, whose file is as large already: it takes no more than that, and then its guest's writes fail. */
  readonly limitBytes?: number
}

/** A PCI function by its address, or a mediated device. */
export type HostDeviceSpec = { readonly kind: 'pci'; readonly address: string } | { readonly kind: 'mdev'; readonly uuid: string }

export type NicSpec = UserNicSpec | TapNicSpec

/** A network of the driver's own making, which publishes ports and holds the guest back. */
export interface UserNicSpec {
  readonly mac: string
  readonly backend: 'user'
  readonly ports: readonly PortForward[]
  readonly bandwidth?: Bandwidth
  /** What the guest opens itself is refused, and the way out is a proxy; absent: the way out is its own. */
  readonly egress?: EgressSpec
}

export interface EgressSpec {
  /**
   * The unix socket of the proxy, which the guest reaches at 10.0.2.4, port 3128. Its directory is there before the VM and stays the same one
   * for as long as it runs; the socket may come later, and anew. Both are open to any user: what is above the directory keeps others out.
   */
  readonly socket: string
  /** Which TCP connections of the guest's own are refused: all of them, or those to ports 80 and 443. */
  readonly mode: 'all' | 'http_https_only'
}

/** A TAP of that name is there. What passes through it is not the driver's affair: no ports, no rates, no counters. */
export interface TapNicSpec {
  readonly mac: string
  readonly backend: 'tap'
  readonly tap: string
}

export interface LogFiles {
  /** What the workload wrote, stdout and stderr in order. */
  readonly app: string
  /** The VMM's own stderr and the guest's kernel console. */
  readonly vmm: string
  /** One JSON line per fact that must outlive the daemon: started, exited. Capped, never rotated. */
  readonly journal: string
  readonly maxBytes: number
}
