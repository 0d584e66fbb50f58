/** Ports of the host that instances are reached at: each has one owner, also while that one is stopped. */
import { AppError } from '@dormouse/api/errors.ts'
import { overlaps } from '../host/host-ports.ts'
import type { PortForward } from '../hypervisors/hypervisor.ts'
import type { InstanceRows } from '../store/instances.ts'
import { probeHostPort } from './host-ports.ts'
import type { Instance, PortRequest } from './instance.ts'
import { portsOf } from './limits.ts'

/** Ports that are the caller's until it lets go of them, by which time a row has them or no one. */
export interface ChosenPorts extends Disposable {
  readonly ports: readonly PortForward[]
}

export class PublishedPorts {
  readonly #rows: InstanceRows
  readonly #publishAddress: string
  readonly #probe: typeof probeHostPort
  /** Picked, and in no row yet: no one else is given them meanwhile. */
  readonly #promised = new Set<PortForward>()

  constructor(rows: InstanceRows, publishAddress: string, probe = probeHostPort) {
    this.#rows = rows
    this.#publishAddress = publishAddress
    this.#probe = probe
  }

  /** With those that were asked for as 0 picked. Throws `port_in_use` naming the owner. */
  async choose(requests: readonly PortRequest[], owner?: Instance): Promise<ChosenPorts> {
    const asked = portsOf(requests, this.#publishAddress)
    this.assertFree(asked, owner)
    const ports: PortForward[] = []
    using letGo = new DisposableStack()
    for (const port of asked) {
      // Its own ports are open already while it runs, and make room for those that take their place.
      const isHeld = owner?.network.ports.some((held) => overlaps(held, port))
      const isGiven = (picked: PortForward): boolean => {
        const isAsked = asked.some((other) => overlaps(picked, other))
        if (isAsked || this.#isPromised(picked) || this.#rows.findPortOwner(picked) !== undefined) return true
        this.#promised.add(picked)
        letGo.defer(() => this.#promised.delete(picked))
        return false
      }
      if (port.hostPort !== 0 && this.#isPromised(port)) {
        throw new AppError('port_in_use', `The host port ${port.hostPort}/${port.protocol} is just being given to another instance`, {
          hint: 'Take another host port, 0 picks a free one',
        })
      }
      ports.push(isHeld ? port : await this.#probe(port, isGiven))
    }
    const held = letGo.move()
    return { ports, [Symbol.dispose]: () => held.dispose() }
  }

  #isPromised(port: PortForward): boolean {
    return [...this.#promised].some((other) => overlaps(port, other))
  }

  assertFree(ports: readonly PortForward[], owner?: Instance): void {
    for (const port of ports) {
      const taken = port.hostPort === 0 ? undefined : this.#rows.findPortOwner(port)
      if (taken && taken.id !== owner?.id) {
        throw new AppError('port_in_use', `The host port ${port.hostPort}/${port.protocol} is published by the instance ${taken.name}`, {
          hint: 'Take another host port, 0 picks a free one',
          detail: { instance: taken.id },
        })
      }
    }
  }
}
