/**
 * The anchor of `create_to_running`: what anyone gets who starts QEMU by hand. The same kernel, initrd, kernel arguments, root
 * disk, modules and overlay, the board's plain form, user networking; and the same end: a program of the image has been started,
 * and the agent has answered that another one ran.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { GuestClient, type GuestConfig } from '../../packages/daemon/src/guest/guest-client.ts'
import { measureTscKhz } from '../../packages/daemon/src/host/host-facts.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { cpuModel, kernelCommandLine } from '../../packages/daemon/src/hypervisors/qemu/command-line.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { REPOSITORY } from './daemon-process.ts'

type RawBoard = 'q35' | 'microvm'

export interface RawBootOptions {
  /** Made, and left with the overlay and the logs in it. */
  readonly dir: string
  /** The image's root disk, a squashfs. */
  readonly rootfs: string
  /** The image's program, with its arguments. */
  readonly argv: readonly string[]
  /** Said by whoever compares: KVM beside TCG, or one board beside another, compares nothing. See `anchorMachineOf`. */
  readonly board: RawBoard
  readonly acceleration: 'kvm' | 'tcg'
  readonly vcpus?: number
  readonly memoryMib?: number
  readonly signal?: AbortSignal
  /** A TAP that is there, and what the guest is told about it; QEMU's built-in network when absent. */
  readonly tap?: { readonly name: string; readonly network: NonNullable<GuestConfig['network']> }
}

export interface RawBoot extends AsyncDisposable {
  readonly board: RawBoard
  readonly acceleration: 'kvm' | 'tcg'
  /** From the spawn of QEMU until the image's program has been started. */
  readonly startedMs: number
  /** The same, to the agent's answer that a second program has run. */
  readonly readyMs: number
  readonly guest: GuestClient
  readonly pid: number
}

const LIMIT_MS = 120_000
const MAC = '02:64:6d:00:00:01'
const BUILD = join(REPOSITORY, 'build')

/** Resolves when the boot is over; the machine runs on until it is disposed of. */
export async function rawColdBoot(options: RawBootOptions): Promise<RawBoot> {
  const { dir, board, acceleration } = options
  const limit = AbortSignal.timeout(LIMIT_MS)
  const step: Step = {
    signal: options.signal === undefined ? limit : AbortSignal.any([limit, options.signal]),
    log: silentLogger,
  }
  await mkdir(dir, { recursive: true })
  await makeOverlay(join(dir, 'overlay.raw'), step)
  const argv = await commandLineOf(options, step)
  await using errors = await open(join(dir, 'qemu.log'), 'w')

  const from = performance.now()
  // A session of its own, as a VM of the daemon's has: the kernel shares processors out among sessions first (sched_autogroup), and who is in
  // that of whoever it talks to is scheduled with him, many times sooner on a busy host. It ends with us all the same.
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', 'qemu-system-x86_64', ...argv], {
    stdio: ['ignore', errors.fd, errors.fd],
    detached: true,
  })
  const ended = once(child, 'exit')
  try {
    const guest = await GuestClient.connect(await agentOf(join(dir, 'agent.sock'), child, step), step)
    await guest.go(guestConfigOf(options), step)
    const startedMs = performance.now() - from
    const { code } = await (await guest.exec({ command: ['/bin/true'] }, step)).exit
    if (code !== 0) throw new Error(`/bin/true ended with ${code} in the guest`)
    const readyMs = performance.now() - from
    return { board, acceleration, startedMs, readyMs, guest, pid: child.pid ?? 0, [Symbol.asyncDispose]: () => end(child, ended) }
  } catch (cause) {
    await end(child, ended)
    throw new Error(`The plain QEMU boot did not come up; see ${dir}`, { cause })
  }
}

async function end(child: ChildProcess, ended: Promise<unknown>): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGKILL')
  await ended
}

async function makeOverlay(path: string, step: Step): Promise<void> {
  await runCommand(['truncate', '-s', '10G', path], { step })
  await runCommand(['mkfs.ext4', '-q', '-F', path], { step })
}

async function commandLineOf(options: RawBootOptions, step: Step): Promise<string[]> {
  const { dir, rootfs, board, acceleration, vcpus = 2, memoryMib = 1024, tap } = options
  const tscKhz = await measureTscKhz(join(BUILD, 'shim/dormouse-shim'), step)
  // As every start script for KVM has it.
  const vhost = acceleration === 'kvm' && existsSync('/dev/vhost-net') ? ',vhost=on' : ''
  const bus = board === 'q35' ? 'pci' : 'device'
  const disk = (serial: string, path: string, readOnly: boolean): string[] => [
    ...['-blockdev', `driver=raw,node-name=${serial},read-only=${readOnly ? 'on' : 'off'},file.driver=file,file.filename=${path}`],
    ...['-device', `virtio-blk-${bus},drive=${serial},serial=${serial}`],
  ]
  const port = (name: string): string[] => ['-device', `virtserialport,chardev=${name},name=dormouse.${name}`]
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-M', board === 'q35' ? 'q35' : 'microvm,acpi=on', '-accel', acceleration, '-cpu', cpuModel(acceleration)],
    ...['-smp', `${vcpus}`, '-m', `${memoryMib}M`],
    ...['-kernel', join(BUILD, 'kernel/vmlinux'), '-initrd', join(BUILD, 'guest/initrd.cpio')],
    ...['-append', kernelCommandLine({ acceleration, tscKhz })],
    ...['-serial', `file:${join(dir, 'console.log')}`],
    ...['-chardev', `socket,id=agent,path=${join(dir, 'agent.sock')},server=on,wait=off`],
    ...['-chardev', `file,id=log,path=${join(dir, 'app.log')}`, '-chardev', `file,id=journal,path=${join(dir, 'journal')}`],
    ...['-device', `virtio-serial-${bus}`, ...port('agent'), ...port('log'), ...port('journal')],
    ...['-netdev', tap === undefined ? 'user,id=net' : `tap,id=net,ifname=${tap.name},script=no,downscript=no${vhost}`],
    ...['-device', `virtio-net-${bus},netdev=net,mac=${tap?.network.mac ?? MAC}${board === 'q35' ? ',romfile=' : ''}`],
    ...disk('rootfs', rootfs, true),
    ...disk('overlay', join(dir, 'overlay.raw'), false),
    ...disk('modules', join(BUILD, 'kernel/modules.squashfs'), true),
  ]
}

/** QEMU makes the socket soon after its start; the agent in the guest opens its end much later, and what is sent until then waits. */
async function agentOf(path: string, child: ChildProcess, step: Step): Promise<Socket> {
  const dial = async (): Promise<Socket | undefined> => {
    if (child.exitCode !== null) throw new Error(`QEMU ended with code ${child.exitCode}`)
    const socket = connect(path)
    return once(socket, 'connect').then(
      () => socket,
      () => undefined,
    )
  }
  return pollUntil("QEMU's socket to the agent", dial, step, { everyMs: 2, upToMs: 10 })
}

/** What a guest is told that runs a program of the busybox image. */
const guestConfigOf = ({ argv, tap }: RawBootOptions): GuestConfig => ({
  hostname: 'raw',
  machineId: '0123456789abcdef0123456789abcdef',
  network: tap?.network ?? guestNetworkOf(MAC, []),
  workload: { kind: 'exec', argv: [...argv], env: { PATH: '/bin:/sbin' }, cwd: '/', user: '', stopSignal: 'SIGTERM' },
  disks: { overlay: true, modules: true, volumes: [] },
})
