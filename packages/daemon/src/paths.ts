/**
 * Every path and file name has its home here; docs/data-dir.md is the page beside it.
 *
 * `dataDir` holds what must outlive a reboot, `runDir` what must not (sockets, pid files). Ids become parts of paths, so each is
 * checked to be a plain name before it does.
 */
import { join, resolve } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'

// sun_path holds 108 bytes with the NUL (unix(7)).
export const SOCKET_PATH_MAX = 107
// The longest name that anything puts into a VM's run directory: see hypervisors/.
const SOCKET_NAME_MAX = 16
const RUN_ID_LENGTH = 12
// A rootfs may be named by a digest of sha512, which has 135 characters.
const PLAIN_NAME = /^[a-z0-9][a-z0-9_.-]{0,159}$/

export class Paths {
  readonly dataDir: string
  readonly runDir: string

  /** Throws when sockets below `runDir` would not fit into a socket address. */
  constructor(dirs: { dataDir: string; runDir: string }) {
    this.dataDir = resolve(dirs.dataDir)
    this.runDir = resolve(dirs.runDir)
    checkSocketPath(join(this.vmRunDir('x'.repeat(RUN_ID_LENGTH)), 'x'.repeat(SOCKET_NAME_MAX)), this.runDir)
  }

  // The daemon's own

  get database(): string {
    return join(this.dataDir, 'dormouse.db')
  }
  /** Held locked while a daemon lives; says whose it is. */
  get lock(): string {
    return join(this.dataDir, 'lock')
  }
  /** Given up when the disk is full. */
  get ballast(): string {
    return join(this.dataDir, 'ballast')
  }
  get jwtSecret(): string {
    return join(this.dataDir, 'jwt-secret')
  }
  /** Learned facts that can be learned again: boot probes, measured clocks. */
  get cacheDir(): string {
    return join(this.dataDir, 'cache')
  }
  get socket(): string {
    return join(this.runDir, 'dormouse.sock')
  }

  // Images

  get imagesDir(): string {
    return join(this.dataDir, 'images')
  }
  get imageLayersDir(): string {
    return join(this.imagesDir, 'layers')
  }
  get imageRootfsDir(): string {
    return join(this.imagesDir, 'rootfs')
  }
  /** What is being made; emptied at every start. */
  get imageDraftsDir(): string {
    return join(this.imagesDir, 'drafts')
  }
  imageRootfs(digest: string): string {
    return join(this.imageRootfsDir, `${plainName(digest.replace(':', '-'))}.squashfs`)
  }
  imageLayer(digest: string): string {
    return join(this.imageLayersDir, plainName(digest.replace(':', '-')))
  }

  // Golden boots and memory bases (`memory/` names what is inside)

  get goldenDir(): string {
    return join(this.dataDir, 'golden')
  }

  /** Bases that were consolidated from captures. */
  get basesDir(): string {
    return join(this.dataDir, 'memory')
  }

  /** Where golden boots and the KVM probe run while they are made. */
  get goldenRunDir(): string {
    return join(this.runDir, 'golden')
  }
  /** Where VMs wait that are no instance's yet; emptied at every start. */
  get poolRunDir(): string {
    return join(this.runDir, 'pool')
  }
  /** Directories of the proxies of the VMs that run. */
  get proxiesDir(): string {
    return join(this.runDir, 'egress')
  }
  proxyRunDir(id: string): string {
    return join(this.proxiesDir, plainName(id).slice(0, RUN_ID_LENGTH))
  }
  /** The same for a doctor's probe. */
  get doctorRunDir(): string {
    return join(this.runDir, `doctor-${process.pid}`)
  }
  /** What the KVM probe found on this host. */
  get kvmProbe(): string {
    return join(this.cacheDir, 'kvm-probe.json')
  }
  /** The same, with Cloud Hypervisor. */
  get cloudHypervisorProbe(): string {
    return join(this.cacheDir, 'kvm-probe-cloud-hypervisor.json')
  }
  /** The same, with Firecracker. */
  get firecrackerProbe(): string {
    return join(this.cacheDir, 'kvm-probe-firecracker.json')
  }

  // Disks

  /** Layers of writable disks; the rows say who stands on which. */
  get disksDir(): string {
    return join(this.dataDir, 'disks')
  }
  disk(layer: string): string {
    return join(this.disksDir, plainName(layer))
  }
  /** What an empty layer is written from, one file per kind and size. */
  get diskTemplatesDir(): string {
    return join(this.cacheDir, 'disks')
  }

  // Captures that are being handed on, and those that are kept

  /** Emptied at every start. */
  get pointsDir(): string {
    return join(this.dataDir, 'points')
  }
  get snapshotsDir(): string {
    return join(this.dataDir, 'snapshots')
  }
  snapshotDir(id: string, generation?: string): string {
    return join(this.snapshotsDir, plainName(generation === undefined ? id : `${id}.${generation}`))
  }

  // Instances

  get instancesDir(): string {
    return join(this.dataDir, 'instances')
  }
  instanceDir(id: string): string {
    return join(this.instancesDir, plainName(id))
  }
  /** Its sleeping states, one directory for each generation; the row says which counts. */
  instanceSleepDir(id: string): string {
    return join(this.instanceDir(id), 'sleep')
  }
  instanceSleep(id: string, generation: string): string {
    return join(this.instanceSleepDir(id), plainName(generation))
  }
  instanceLogsDir(id: string): string {
    return join(this.instanceDir(id), 'logs')
  }
  instanceLogs(id: string): InstanceLogPaths {
    const dir = this.instanceLogsDir(id)
    return {
      app: join(dir, 'app.log'),
      vmm: join(dir, 'vmm.log'),
      daemon: join(dir, 'daemon.log'),
      egress: join(dir, 'egress.log'),
      journal: join(dir, 'journal'),
    }
  }

  /** Directories of the VMs that run. */
  get vmsDir(): string {
    return join(this.runDir, 'vm')
  }
  /** A VM's own run directory. The id is cut so that socket paths fit; ids are chance throughout and stay unique at this length. */
  vmRunDir(id: string): string {
    return join(this.vmsDir, plainName(id).slice(0, RUN_ID_LENGTH))
  }
}

export interface InstanceLogPaths {
  /** What the workload wrote. */
  readonly app: string
  /** The VMM's stderr and the guest's kernel console. */
  readonly vmm: string
  /** The daemon's own lines about the instance. */
  readonly daemon: string
  /** What its proxy had to say of itself. */
  readonly egress: string
  /** Facts from the guest, drained by the shim. */
  readonly journal: string
}

function plainName(name: string): string {
  if (!PLAIN_NAME.test(name) || name.includes('..')) throw new AppError('invalid_path', `${JSON.stringify(name)} cannot be part of a path`)
  return name
}

function checkSocketPath(longest: string, dir: string): void {
  const bytes = Buffer.byteLength(longest)
  if (bytes > SOCKET_PATH_MAX) {
    throw new AppError(
      'invalid_path',
      `The run directory ${dir} is too long: sockets below it would need ${bytes} bytes, a socket address holds ${SOCKET_PATH_MAX}`,
      {
        hint: `Set DORMOUSE_RUN_DIR to a path that is ${bytes - SOCKET_PATH_MAX} bytes shorter`,
      },
    )
  }
}
