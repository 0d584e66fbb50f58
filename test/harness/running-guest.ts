/** A driver's VM with busybox in it, led as far as a workload that sleeps, so that a test can run commands inside. */
import { execFileSync } from 'node:child_process'
import { copyFile, mkdir, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { GuestClient, type GuestConfig } from '../../packages/daemon/src/guest/guest-client.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import type { VmSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { makeStep, type QemuUnderTest } from './qemu-driver.ts'

export interface RunningGuest extends AsyncDisposable {
  readonly vm: Vm
  readonly spec: VmSpec
  readonly guest: GuestClient
  /** What `sh -c` printed, both outputs, trimmed. */
  sh(script: string): Promise<string>
}

/** A squashfs with Debian's static busybox and its links, and a server for datagrams, which busybox lacks. */
export async function makeRootfs(dir: string): Promise<string> {
  const tree = join(dir, 'tree')
  const file = join(dir, 'busybox.squashfs')
  for (const name of ['bin', 'etc', 'proc', 'sys', 'dev', 'tmp', 'root']) await mkdir(join(tree, name), { recursive: true })
  await copyFile('/bin/busybox', join(tree, 'bin/busybox'))
  const names = execFileSync('/bin/busybox', ['--list'], { encoding: 'utf8' }).trim().split('\n')
  for (const name of names) if (name !== 'busybox') await symlink('busybox', join(tree, 'bin', name))
  await runCommand(['gcc', '-O1', '-static', '-o', join(tree, 'bin/udp-echo'), join(import.meta.dirname, 'udp-echo.c')], {
    step: makeStep(),
  })
  await runCommand(['mksquashfs', tree, file, '-noappend', '-quiet', '-comp', 'lz4', '-no-progress'], { step: makeStep() })
  return file
}

export async function runGuest(driver: QemuUnderTest, rootfs: string, changes: Partial<VmSpec> = {}): Promise<RunningGuest> {
  const spec = await driver.makeSpec({ disks: [{ role: 'rootfs', path: rootfs, format: 'raw', readOnly: true }], ...changes })
  await using undo = new AsyncDisposableStack()
  const vm = await driver.hypervisor.start(spec, makeStep())
  undo.defer(async () => void (await vm.kill()))
  const guest = undo.use(await GuestClient.connect(await vm.connectGuest(makeStep()), makeStep()))
  const config: GuestConfig = {
    hostname: 'guest',
    machineId: '0'.repeat(32),
    workload: { kind: 'exec', argv: ['sleep', '100000'], env: { PATH: '/bin' }, cwd: '/', user: '', stopSignal: 'SIGTERM' },
    disks: { overlay: spec.disks.some(({ role }) => role === 'overlay'), modules: false, volumes: volumesOf(spec) },
    // What an instance is told, so that nothing here holds for a network that no instance has.
    network: guestNetworkOf('02:00:00:00:00:01', []),
  }
  await guest.go(config, makeStep())
  const held = undo.move()
  return {
    vm,
    spec,
    guest,
    async sh(script) {
      const run = await guest.exec({ command: ['sh', '-c', `exec 2>&1; ${script}`] }, makeStep())
      run.stdin.end()
      const [out] = await Promise.all([text(run.stdout), text(run.stderr), run.exit])
      return out.trim()
    },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}

/** Every volume, mounted where its serial says. */
const volumesOf = ({ disks }: VmSpec): GuestConfig['disks']['volumes'] =>
  disks
    .filter(({ role }) => role.startsWith('volume-'))
    .map(({ role, readOnly }) => ({ serial: role, mountPath: `/${role}`, readOnly, fs: 'ext4' }))
