import assert from 'node:assert/strict'
import type { Duplex } from 'node:stream'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import type { GuestManners } from './qemu-driver.ts'

/** How a test meets the real agent of a guest that has not been given its configuration. */
export const agentManners: GuestManners = {
  async awaitParked(stream: Duplex, step: Step) {
    await using guest = await GuestClient.connect(stream, step)
    assert.equal(guest.hello.phase, 'parked')
  },
  async greet(stream: Duplex, step: Step) {
    await using guest = await GuestClient.connect(stream, step)
    assert.equal(guest.hello.phase, 'parked')
  },
}
