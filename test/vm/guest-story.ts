/** A real guest for a story: a small busybox root, an overlay, the kernel's modules, woken from one golden boot per test file. */
import { chmod, chown, copyFile, mkdir, readFile, symlink, truncate, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { type ExecRequest, GuestClient, type GuestConfig } from '../../packages/daemon/src/guest/guest-client.ts'
import { type JournalFact, readJournal } from '../../packages/daemon/src/guest/journal.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { HypervisorName, Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import type { VmSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, type QemuUnderTest, qemuUnderTest } from '../harness/qemu-driver.ts'
import { tarTree } from '../harness/tar-tree.ts'

const BUSYBOX = '/bin/busybox'
const MODULES = join(import.meta.dirname, '../../build/kernel/modules.squashfs')

export interface Told {
  readonly code: number
  readonly message: string
  readonly stdout: string
  readonly stderr: string
}

/** A guest that has been told to run, or is still parked. */
export interface Guest extends AsyncDisposable {
  readonly vm: Vm
  readonly spec: VmSpec
  client: GuestClient
  /** Runs a program to its end. A text is run by the shell. */
  run(command: string | readonly string[], options?: Omit<ExecRequest, 'command'> & { readonly input?: string }): Promise<Told>
  /** What the workload has written, once it matches. */
  logged(pattern: RegExp): Promise<string>
  /** The journal, after the machine's end. */
  ended(): Promise<readonly JournalFact[]>
}

export interface GuestHouse extends AsyncDisposable {
  readonly driver: QemuUnderTest
  parked(changes?: Partial<VmSpec>): Promise<Guest>
  running(workload?: Partial<GuestConfig['workload']>, changes?: Partial<VmSpec>): Promise<Guest>
}

export const NETWORK = { mac: '02:00:00:0a:0b:0c', ipv4: { address: '10.0.2.15', prefix: 24, gateway: '10.0.2.2' }, dns: ['10.0.2.3'] }

export const configOf = (workload: Partial<GuestConfig['workload']> = {}): GuestConfig => ({
  hostname: 'story',
  machineId: '0123456789abcdef0123456789abcdef',
  network: NETWORK,
  hosts: ['192.0.2.9 db'],
  workload: {
    kind: 'exec',
    argv: ['/bin/sleep', '1000000'],
    env: { COLOUR: 'blue' },
    cwd: '/',
    user: '',
    stopSignal: 'SIGTERM',
    ...workload,
  },
  disks: { overlay: true, modules: true, volumes: [] },
})

/** `files`: further files of the root by absolute path; those below a `bin` directory are programs. */
export async function guestHouse(name: HypervisorName, files: Readonly<Record<string, string>> = {}): Promise<GuestHouse> {
  const driver = await qemuUnderTest(name, agentManners)
  const rootfs = await makeRootfs(driver.dir, files)
  let count = 0

  async function parked(changes: Partial<VmSpec> = {}): Promise<Guest> {
    const base = await driver.makeSpec(changes)
    const overlay = join(driver.dir, `overlay-${++count}`)
    await writeFile(overlay, '', { mode: 0o600 })
    await truncate(overlay, 1 << 30)
    await runCommand(['mkfs.ext4', '-q', '-F', overlay], { step: makeStep() })
    if (base.user) await chown(overlay, base.user.uid, base.user.gid)
    const spec: VmSpec = {
      ...base,
      disks: changes.disks ?? [
        { role: 'rootfs', path: rootfs, format: 'raw', readOnly: true },
        { role: 'overlay', path: overlay, format: 'raw', readOnly: false },
        { role: 'modules', path: MODULES, format: 'raw', readOnly: true },
      ],
    }
    const vm = await driver.hypervisor.start(spec, makeStep())
    try {
      const client = await GuestClient.connect(await vm.connectGuest(makeStep()), makeStep())
      return new StoryGuest(vm, spec, client)
    } catch (error) {
      await vm.kill()
      throw error
    }
  }

  return {
    driver,
    parked,
    async running(workload, changes) {
      const guest = await parked(changes)
      try {
        await guest.client.go(configOf(workload), makeStep())
        return guest
      } catch (error) {
        await guest[Symbol.asyncDispose]()
        throw error
      }
    },
    [Symbol.asyncDispose]: () => driver[Symbol.asyncDispose](),
  }
}

class StoryGuest implements Guest {
  readonly vm: Vm
  readonly spec: VmSpec
  client: GuestClient

  constructor(vm: Vm, spec: VmSpec, client: GuestClient) {
    this.vm = vm
    this.spec = spec
    this.client = client
  }

  async run(command: string | readonly string[], options: Omit<ExecRequest, 'command'> & { readonly input?: string } = {}): Promise<Told> {
    const { input, ...rest } = options
    const argv = typeof command === 'string' ? ['/bin/sh', '-c', command] : command
    const exec = await this.client.exec({ command: argv, ...rest }, makeStep())
    exec.stdin.end(input ?? '')
    const [stdout, stderr, { code, message }] = await Promise.all([textOf(exec.stdout), textOf(exec.stderr), exec.exit])
    return { code, message, stdout, stderr }
  }

  async logged(pattern: RegExp): Promise<string> {
    const look = async () => {
      const text = await readFile(this.spec.logs.app, 'utf8').catch(() => '')
      return pattern.test(text) ? text : undefined
    }
    return pollUntil(`${pattern} in the app log`, look, makeStep(), { everyMs: 20 })
  }

  async ended(): Promise<readonly JournalFact[]> {
    await this.vm.exited
    return readJournal(this.spec.logs.journal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client[Symbol.asyncDispose]()
    await this.vm.kill()
  }
}

export async function textOf(stream: Readable): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString()
}

async function makeRootfs(dir: string, files: Readonly<Record<string, string>>): Promise<string> {
  const tree = join(dir, 'tree')
  for (const name of ['bin', 'etc', 'tmp', 'root', 'var/run']) await mkdir(join(tree, name), { recursive: true })
  await copyFile(BUSYBOX, join(tree, 'bin/busybox'))
  await chmod(join(tree, 'bin/busybox'), 0o755)
  await chmod(join(tree, 'tmp'), 0o1777)
  const { stdout } = await runCommand([BUSYBOX, '--list'], { step: makeStep() })
  for (const applet of stdout.trim().split('\n')) if (applet !== 'busybox') await symlink('busybox', join(tree, 'bin', applet))
  const contents = {
    '/etc/machine-id': '',
    '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n',
    '/etc/group': 'root:x:0:\nalice:x:1000:\nwheel:x:27:bob,alice\naudio:x:29:\n',
    ...files,
  }
  for (const [name, content] of Object.entries(contents)) {
    await mkdir(join(tree, dirname(name)), { recursive: true })
    await writeFile(join(tree, name), content)
    await chmod(join(tree, name), /\/s?bin\//.test(name) ? 0o755 : 0o644)
  }
  const tar = join(dir, 'tree.tar')
  const rootfs = join(dir, 'rootfs.squashfs')
  await tarTree(tree, tar)
  await runCommand(['sh', '-c', 'exec tar2sqfs -q -f -c lz4 "$1" < "$2"', 'sh', rootfs, tar], { step: makeStep() })
  // The VMMs run as users of their own and only read it.
  await chmod(rootfs, 0o644)
  return rootfs
}
