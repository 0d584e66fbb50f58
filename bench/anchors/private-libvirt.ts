/**
 * libvirt as Debian has it, and nothing of it left on the host: its daemon runs in a mount namespace of its own, where the places that
 * it writes to are a scratch directory, and ends with it. Its own user is known in that namespace alone.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { access, mkdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type CommandResult, runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'

/** Where libvirt writes, by the name of the directory that stands in for it. */
const PLACES = {
  etc: '/etc/libvirt',
  run: '/run/libvirt',
  lib: '/var/lib/libvirt',
  log: '/var/log/libvirt',
  cache: '/var/cache/libvirt',
} as const
const USER = 'libvirt-qemu'
/** It asks each QEMU on the host what it can do before it answers for the first time. */
const START_LIMIT_MS = 60_000
const COMMAND_LIMIT_MS = 180_000

const CONFIG = {
  'libvirtd.conf': (dir: string) => `unix_sock_dir = "${dir}/run"\nauth_unix_rw = "none"\nlog_outputs = "3:file:${dir}/log/libvirtd.log"\n`,
  // No confinement and no change of owners: less to do for it, and nothing of the host's to touch.
  'qemu.conf': () =>
    'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = "file"\ndynamic_ownership = 0\nremember_owner = 0\n',
} as const

/** Why libvirt cannot be had here, in words; undefined when it can. */
export async function whyNoLibvirt(): Promise<string | undefined> {
  if (process.geteuid?.() !== 0) return 'its daemon is started in a mount namespace, which needs root'
  for (const file of [
    '/usr/sbin/libvirtd',
    '/usr/bin/virsh',
    '/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so',
  ]) {
    if (!(await exists(file))) return `${file} is not there: apt-get install libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients`
  }
  return undefined
}

export class PrivateLibvirt implements AsyncDisposable {
  readonly #dir: string
  readonly #child: ChildProcess
  readonly #ended: Promise<unknown>
  readonly #made: readonly string[]

  private constructor(dir: string, child: ChildProcess, ended: Promise<unknown>, made: readonly string[]) {
    this.#dir = dir
    this.#child = child
    this.#ended = ended
    this.#made = made
  }

  /** `dir` must not exist. Resolves when it answers. */
  static async start(dir: string): Promise<PrivateLibvirt> {
    for (const place of Object.keys(PLACES)) await mkdir(join(dir, place), { recursive: true })
    for (const [name, text] of Object.entries(CONFIG)) await writeFile(join(dir, 'etc', name), text(dir))
    await writeFile(join(dir, 'passwd'), `${await readFile('/etc/passwd', 'utf8')}${USER}:x:64055:64055::/nonexistent:/usr/sbin/nologin\n`)
    await writeFile(join(dir, 'group'), `${await readFile('/etc/group', 'utf8')}${USER}:x:64055:\n`)
    const made = await makeMissing(Object.values(PLACES))
    const mounts = [...Object.entries(PLACES), ['passwd', '/etc/passwd'], ['group', '/etc/group']]
    const script = `${mounts.map(() => 'mount --bind "$1" "$2" && shift 2 && ').join('')} exec libvirtd --config "$1"`
    const words = [...mounts.flatMap(([from = '', to = '']) => [join(dir, from), to]), join(dir, 'etc/libvirtd.conf')]
    const child = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, 'libvirtd', ...words], { stdio: 'ignore' })
    const libvirt = new PrivateLibvirt(dir, child, once(child, 'exit'), made)
    try {
      const step = { signal: AbortSignal.timeout(START_LIMIT_MS), log: silentLogger }
      const answers = async (): Promise<boolean> => {
        if (child.exitCode !== null) throw new Error(`libvirtd ended with code ${child.exitCode}`)
        return (
          (await exists(join(dir, 'run/libvirt-sock'))) &&
          (await libvirt.virsh('version').then(
            () => true,
            () => false,
          ))
        )
      }
      await pollUntil('libvirtd to answer', answers, step)
      return libvirt
    } catch (error) {
      await libvirt[Symbol.asyncDispose]()
      throw error
    }
  }

  virsh(...words: readonly string[]): Promise<CommandResult> {
    const uri = `qemu+unix:///system?socket=${this.#dir}/run/libvirt-sock`
    return runCommand(['virsh', '--quiet', '--connect', uri, ...words], { step: { signal: AbortSignal.timeout(COMMAND_LIMIT_MS) } })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGTERM')
      const limit = setTimeout(() => this.#child.kill('SIGKILL'), 10_000)
      await this.#ended
      clearTimeout(limit)
    }
    for (const place of this.#made) await rmdir(place).catch(() => undefined)
  }
}

/** A mount needs something to lie on. */
async function makeMissing(places: readonly string[]): Promise<string[]> {
  const made: string[] = []
  for (const place of places) {
    if (await exists(place)) continue
    await mkdir(place)
    made.push(place)
  }
  return made
}

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  )
