import { constants, existsSync } from 'node:fs'
import { access, copyFile, mkdir, open, rm, statfs } from 'node:fs/promises'
import { homedir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import { assetsIn, defaultAssetsDir } from '../config/assets.ts'
import type { Config } from '../config/config.ts'
import { Cgroups } from '../host/cgroups.ts'
import { readAvailableMemoryBytes, readHostFacts } from '../host/host-facts.ts'
import { cgroupNameOf, createHypervisors } from '../hypervisor-set.ts'
import type { HypervisorName } from '../hypervisors/hypervisor.ts'
import { silentLogger } from '../log.ts'
import { Paths } from '../paths.ts'
import type { Finding } from './doctor.ts'

type Check = (config: Config) => Promise<Finding[]>

const MIB = 2 ** 20
const GIB = 2 ** 30
const whole = (bytes: number): string => formatSize(bytes >= 10 * GIB ? Math.floor(bytes / GIB) * GIB : Math.floor(bytes / MIB) * MIB)

export const checkHost: Check = async () => {
  const { architecture, cpus, cpuModel, kernel } = readHostFacts()
  const memory = readAvailableMemoryBytes()
  return [
    architecture === 'x86_64' && process.platform === 'linux'
      ? { what: 'host', state: 'good', says: `Linux ${kernel}, ${cpus} × ${cpuModel}` }
      : { what: 'host', state: 'bad', says: `${process.platform} on ${architecture} is not supported`, mend: 'Use Linux on x86-64' },
    memory >= 512 * MIB
      ? { what: 'memory', state: 'good', says: `${whole(memory)} available` }
      : {
          what: 'memory',
          state: 'poor',
          says: `only ${whole(memory)} available`,
          mend: 'End what else uses memory, or give instances a smaller size',
        },
  ]
}

export const checkRights: Check = async ({ instances }) => {
  if (readHostFacts().isRoot) {
    return [{ what: 'rights', state: 'good', says: `root; each VM runs as a user of its own, from ${instances.uidBase} on` }]
  }
  return [
    {
      what: 'rights',
      state: 'poor',
      says: 'an ordinary user: every VM runs as this user',
      mend: 'Run the daemon as root for a wall between VMs',
    },
  ]
}

/** Programs that are run, the Debian package of each, and what does not work without it. */
const TOOLS: readonly { readonly program: string; readonly debian: string; readonly state: 'poor' | 'bad'; readonly without: string }[] = [
  { program: 'qemu-system-x86_64', debian: 'qemu-system-x86', state: 'bad', without: 'no VM runs' },
  { program: 'qemu-img', debian: 'qemu-utils', state: 'bad', without: 'no disk can be made' },
  { program: 'mkfs.ext4', debian: 'e2fsprogs', state: 'bad', without: 'no disk can be made' },
  { program: 'resize2fs', debian: 'e2fsprogs', state: 'poor', without: 'disks cannot grow' },
  { program: 'tar2sqfs', debian: 'squashfs-tools-ng', state: 'bad', without: 'no image can be imported or pulled' },
]

export const checkTools: Check = async () => {
  const path = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin', '/usr/bin', '/bin']
  return findTools(path)
}

/** What the programs' directories lack. */
export function findTools(path: readonly string[]): Finding[] {
  const missing = TOOLS.filter(({ program }) => !path.some((dir) => dir !== '' && existsSync(join(dir, program))))
  if (missing.length === 0) return [{ what: 'programs', state: 'good', says: TOOLS.map(({ program }) => program).join(', ') }]
  return missing.map(({ program, debian, state, without }) => ({
    what: 'programs',
    state,
    says: `${program} is not installed: ${without}`,
    mend: `apt-get install --no-install-recommends ${debian}`,
  }))
}

/** Without them instances run all the same, and something else does not. */
const SPARED: ReadonlySet<string> = new Set(['modules', 'guest', 'rehearsal', 'fill'])

export const checkAssets: Check = async (config) => {
  const assets = assetsIn(config.assetsDir ?? defaultAssetsDir())
  const { dir, ...parts } = assets
  const missing = Object.entries(parts).filter(([, path]) => !existsSync(path))
  if (missing.length === 0) return [{ what: 'guest parts', state: 'good', says: `kernel, initrd, modules and shim in ${dir}` }]
  return missing.map(([name, path]) => ({
    what: 'guest parts',
    state: SPARED.has(name) ? 'poor' : 'bad',
    says: `the ${name} is missing: ${path}`,
    mend: 'Build it in the clone with: scripts/setup.sh (or make install), or set DORMOUSE_ASSETS_DIR',
  }))
}

/** Really runs the probe: a guest is booted with KVM, which takes some seconds the first time on a host. */
export const checkHypervisors: Check = async (config) => {
  await using stack = new AsyncDisposableStack()
  try {
    const paths = new Paths(config)
    const assets = assetsIn(config.assetsDir ?? defaultAssetsDir())
    await mkdir(paths.cacheDir, { recursive: true, mode: 0o711 })
    // Its own, so that it and a daemon that runs do not end each other's probes.
    const workDir = paths.doctorRunDir
    stack.defer(() => rm(workDir, { recursive: true, force: true }))
    const { drivers } = createHypervisors({
      config,
      log: silentLogger,
      paths,
      assets,
      isRoot: readHostFacts().isRoot,
      stack,
      workDir,
      isNeeded: () => true,
    })
    const findings: Finding[] = []
    for (const driver of drivers) {
      const probe = await driver.probe({ signal: AbortSignal.timeout(60_000), log: silentLogger })
      const version = probe.version === undefined ? '' : ` ${probe.version}`
      findings.push({
        what: driver.name,
        state: probe.available ? (probe.acceleration === 'kvm' ? 'good' : 'poor') : isWanted(driver.name, config) ? 'bad' : 'good',
        says: probe.available
          ? `available${version}${among(driver.versions)}, ${probe.acceleration ?? 'no acceleration'}${because(probe.reason)}`
          : `not available${because(probe.reason)}`,
        ...(probe.mend === undefined ? {} : { mend: probe.mend }),
        ...(probe.available && probe.acceleration === 'tcg'
          ? {
              mend: 'Until KVM can be used guests are emulated, several times slower; on a virtual host the provider has to allow nested virtualization',
            }
          : {}),
      })
      if (probe.memoryOutOfReach !== undefined) findings.push(memoryCopied(driver.name, probe.memoryOutOfReach))
    }
    return findings
  } catch (error) {
    return [{ what: 'hypervisors', state: 'bad', says: sentenceOf(error) }]
  }
}

const among = (versions: readonly string[] | undefined): string => (versions === undefined ? '' : ` (works with ${versions.join(' and ')})`)

/** The others are there for who asks for them. */
const isWanted = (name: HypervisorName, { hypervisor }: Config): boolean => name === hypervisor || name.startsWith('qemu')

const memoryCopied = (driver: string, why: string): Finding => ({
  what: driver,
  state: 'poor',
  says: `the memory of VMs is out of reach (${why}): each gets a copy of its base, so that it starts later and takes more memory`,
  mend: 'Give the daemon CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope to 0 or 1',
})

export const checkCgroups: Check = async (config) => {
  if (!config.cgroups.enabled) return [{ what: 'cgroups', state: 'good', says: 'turned off (DORMOUSE_CGROUPS)' }]
  await using cgroups = Cgroups.prepare(cgroupNameOf(new Paths(config).doctorRunDir))
  const { version, controllers, reason } = cgroups.answer
  if (reason === undefined)
    return [{ what: 'cgroups', state: 'good', says: `${version}: each VM's processors, memory and processes are limited` }]
  return [
    {
      what: 'cgroups',
      state: 'poor',
      says: `${version === 'none' ? 'no VM is limited' : `only ${controllers.join(' and ')} of each VM are limited`}${because(reason)}`,
      mend: mendOfCgroups(reason, readHostFacts().isRoot),
    },
  ]
}

/** What keeps VMs from having cgroups, as far as the words say it. Nothing else keeps a VM that was taken over from starving the host. */
export function mendOfCgroups(reason: string, isRoot: boolean): string {
  if (/no cgroup file system is mounted/.test(reason)) {
    return isRoot
      ? 'Mount it: mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup; in a container, have its engine do it'
      : 'Have root mount it, and run the daemon as root, by its systemd unit: mount -t cgroup2 none /sys/fs/cgroup'
  }
  if (!isRoot) return 'Run the daemon as root, by its systemd unit'
  if (/EROFS/.test(reason)) return 'In a container: have its engine mount /sys/fs/cgroup so that it can be written'
  return 'Run the daemon by its systemd unit, which has a cgroup of its own handed to it'
}

export const checkPool: Check = async ({ pool, golden, assetsDir }) => {
  const isOff = pool.size === 0 || !golden.enabled || !existsSync(assetsIn(assetsDir ?? defaultAssetsDir()).rehearsal)
  const says = isOff
    ? 'no VM waits for creates: each wakes or boots its own'
    : `up to ${pool.size} wait for creates; /capabilities says how many do`
  return [{ what: 'waiting VMs', state: 'good', says }]
}

export const checkDataDir: Check = async ({ dataDir, limits }) => {
  try {
    const parent = nearestExisting(dataDir)
    await access(parent, constants.W_OK)
    const { bavail, bsize, blocks } = await statfs(parent)
    const free = bavail * bsize
    const says = `${dataDir}: ${whole(free)} of ${whole(blocks * bsize)} free${limits.diskRatio === 1 ? '' : `, given out ${limits.diskRatio} times`}`
    if (free < 2 * GIB)
      return [{ what: 'data directory', state: free < 512 * MIB ? 'bad' : 'poor', says, mend: 'Free some space: dormouse prune --all' }]
    return [{ what: 'data directory', state: 'good', says }]
  } catch (error) {
    return [
      {
        what: 'data directory',
        state: 'bad',
        says: `${dataDir} cannot be written: ${sentenceOf(error)}`,
        mend: `Run as root, or set DORMOUSE_DATA_DIR to a directory of yours, such as ${join(homedir(), '.local/share/dormouse')}`,
      },
    ]
  }
}

export const checkReflink: Check = async ({ dataDir }) => {
  const dir = nearestExisting(dataDir)
  const probe = join(dir, `.reflink-probe-${process.pid}`)
  try {
    {
      await using file = await open(probe, 'wx', 0o600)
      await file.write(Buffer.alloc(4096, 1))
    }
    await copyFile(probe, `${probe}-clone`, constants.COPYFILE_FICLONE_FORCE)
    return [{ what: 'disk clones', state: 'good', says: 'the file system shares blocks (reflink)' }]
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EACCES' || code === 'EROFS') return []
    return [
      {
        what: 'disk clones',
        state: 'poor',
        says: 'the file system cannot share blocks: clones cost what is written on them',
        mend: 'For cheap forks of large disks put the data directory on XFS or btrfs',
      },
    ]
  } finally {
    await rm(probe, { force: true })
    await rm(`${probe}-clone`, { force: true })
  }
}

export const checkRunDir: Check = async (config) => {
  try {
    new Paths(config)
    await access(nearestExisting(config.runDir), constants.W_OK)
    return [{ what: 'run directory', state: 'good', says: config.runDir }]
  } catch (error) {
    return [
      {
        what: 'run directory',
        state: 'bad',
        says: sentenceOf(error),
        ...(error instanceof AppError && error.hint !== undefined ? { mend: error.hint } : {}),
      },
    ]
  }
}

function nearestExisting(path: string): string {
  let dir = path
  while (!existsSync(dir) && dirname(dir) !== dir) dir = dirname(dir)
  return dir
}

const because = (reason: string | undefined): string => (reason === undefined ? '' : `: ${reason}`)
const sentenceOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))
