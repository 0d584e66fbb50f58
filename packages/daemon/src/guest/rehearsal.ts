import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { guestNetworkOf } from '../network/network.ts'
import { GuestClient } from './guest-client.ts'
import type { GuestConfig } from './guest-config.ts'

const PROGRAM = '/bin/rehearsal'
/** What a second life still brings is a tenth of what the first did, and it takes a tenth of the time. */
const LIVES = 2
const GRACE_MS = 5000
/**
 * Linux tells of changes of a network card's state once a second at most: one whose card went down a moment ago would have it come up
 * late.
 */
const LINK_EVENTS_MS = 1200

export interface RehearsalUses {
  readonly connect: () => Promise<Duplex>
  readonly mac: string
  readonly hasModules: boolean
  /** Takes the disks of the rehearsal away from a guest that runs. */
  readonly takeDisks: () => Promise<void>
}

/**
 * Leads a parked guest through whole lives, on the disks of a rehearsal: its configuration, a workload, a command beside it, the end.
 * Resolves when it is parked as it was before, and has seen that these disks are gone. When it throws, the machine is of no use any more.
 */
export async function rehearse({ connect, takeDisks, ...about }: RehearsalUses, step: Step): Promise<void> {
  for (let life = 0; life < LIVES; life++) {
    {
      await using guest = await parked(connect, step)
      await guest.rehearse(step)
    }
    await using guest = await parked(connect, step)
    await guest.go(configOf(about), step)
    const command = await guest.exec({ command: [PROGRAM] }, step)
    // A workload that ends takes the command with it.
    const { code, message } = await Promise.race([command.exit, guest.exited.then(({ message }) => ({ code: 1, message }))])
    if (code !== 0) throw new AppError('internal_error', `The command of a rehearsal failed: ${message}`)
    await guest.shutdown({ graceMs: GRACE_MS }, step)
    const ending = await guest.exited
    if (ending.code !== 0) throw new AppError('internal_error', `The workload of a rehearsal failed: ${ending.message}`)
  }
  await using guest = await parked(connect, step)
  await takeDisks()
  await guest.vacate(step)
  await sleep(LINK_EVENTS_MS, undefined, { signal: step.signal })
}

async function parked(connect: () => Promise<Duplex>, step: Step): Promise<GuestClient> {
  const guest = await GuestClient.connect(await connect(), step)
  // Whoever waits for an end that does not come is told so.
  const giveUp = (): void => void guest.close(new AppError('timed_out', 'The rehearsal did not end in time', { cause: step.signal.reason }))
  step.signal.addEventListener('abort', giveUp, { once: true })
  void guest.closed.then(() => step.signal.removeEventListener('abort', giveUp))
  if (guest.hello.phase === 'parked') return guest
  await guest.close()
  throw new AppError('internal_error', `A guest that is to rehearse is ${guest.hello.phase}, not parked`)
}

const configOf = ({ mac, hasModules }: { readonly mac: string; readonly hasModules: boolean }): GuestConfig => ({
  hostname: 'rehearsal',
  machineId: '0'.repeat(32),
  network: networkOf(mac),
  workload: {
    kind: 'exec',
    argv: [PROGRAM, 'wait'],
    env: { PATH: '/bin' },
    cwd: '/',
    user: '',
    stopSignal: 'SIGTERM',
  },
  disks: { overlay: true, modules: hasModules, volumes: [] },
})

/** Other addresses than an instance has: the network helper remembers whose card has which. */
function networkOf(mac: string): GuestConfig['network'] {
  const { ipv4, ipv6, ...rest } = guestNetworkOf(mac, [])
  return { ...rest, ipv4: { ...ipv4, address: '10.0.2.14' }, ipv6: { ...ipv6, address: 'fdd0:6d05:e000::14' } }
}
