import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, qemuUnderTest } from '../harness/qemu-driver.ts'

/** What the daemon's own probe makes of /dev/kvm here. `ms`: it takes that long to boot a guest with it. */
export async function tryKvm(limitMs: number): Promise<{ readonly works: boolean; readonly reason: string; readonly ms: number }> {
  // A driver keeps no process alive by itself: that is for the daemon that has it.
  const alive = setInterval(() => undefined, 60_000)
  try {
    await using driver = await qemuUnderTest('qemu', agentManners, { kvmProbeLimitMs: limitMs })
    const from = performance.now()
    const { acceleration, reason = '' } = await driver.hypervisor.probe(makeStep(2 * limitMs))
    return { works: acceleration === 'kvm', reason, ms: Math.round(performance.now() - from) }
  } finally {
    clearInterval(alive)
  }
}
