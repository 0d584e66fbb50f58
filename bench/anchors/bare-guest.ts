/** What every plain machine of the bench has, of whichever VMM: the guest of an instance, and how it is spoken with. */
import type { ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import type { GuestClient, GuestConfig, WakeRequest } from '../../packages/daemon/src/guest/guest-client.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { REPOSITORY } from '../../test/harness/daemon-process.ts'

export const KERNEL = join(REPOSITORY, 'build/kernel/vmlinux')
export const INITRD = join(REPOSITORY, 'build/guest/initrd.cpio')
export const MODULES = join(REPOSITORY, 'build/kernel/modules.squashfs')
export const MAC = '02:64:6d:00:00:01'
const LIMIT_MS = 120_000

/** What the daemon asks of a guest that was asleep; whoever wakes one by hand asks the same. */
export const WAKE: WakeRequest = { closeConnections: true, announce: true }

export const limited = (): Step => ({ signal: AbortSignal.timeout(LIMIT_MS), log: silentLogger })

/** What a guest is told that runs `argv` on the three disks of an instance. */
export const bareGuestConfig = (argv: readonly string[], network?: GuestConfig['network']): GuestConfig => ({
  hostname: 'bare',
  machineId: '0123456789abcdef0123456789abcdef',
  ...(network === undefined ? {} : { network }),
  workload: { kind: 'exec', argv: [...argv], env: { PATH: '/bin:/sbin' }, cwd: '/', user: '', stopSignal: 'SIGTERM' },
  disks: { overlay: true, modules: true, volumes: [] },
})

/** A program that has to end well. */
export async function runIn(guest: GuestClient, command: readonly string[]): Promise<void> {
  const { code } = await (await guest.exec({ command: [...command] }, limited())).exit
  if (code !== 0) throw new Error(`${command.join(' ')} ended with ${code} in the plain guest`)
}

/** By force. */
export async function end(child: ChildProcess, ended: Promise<unknown>): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGKILL')
  await ended
}
