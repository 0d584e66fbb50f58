/** Ports of the host that instances are reached at: each has one owner, also while that one is stopped. */
import { AppError } from '@dormouse/api/errors.ts'
import { overlaps } from '../host/host-ports.ts'
import type { PortForward } from '../hypervisors/hypervisor.ts'
import type { InstanceRows } from '../store/instances.ts'
import { probeHostPort } from './host-ports.ts'
import type { Instance, PortRequest } from './instance.ts'
import { portsOf } from './limits.ts'

export class PublishedPorts {
  readonly #rows: InstanceRows
  readonly #publishAddress: string

  constructor(rows: InstanceRows, publishAddress: string) {
    this.#rows = rows
    this.#publishAddress = publishAddress
  }

  /** With those that were asked for as 0 picked. Throws `port_in_use` naming the owner. */
  async choose(requests: readonly PortRequest[], owner?: Instance): Promise<PortForward[]> {
    const ports = portsOf(requests, this.#publishAddress)
    this.assertFree(ports, owner)
    const chosen: PortForward[] = []
    const isGiven = (port: PortForward): boolean =>
      chosen.some((other) => overlaps(port, other)) || this.#rows.findPortOwner(port) !== undefined
    for (const port of ports) {
      // Its own ports are open already while it runs, and make room for those that take their place.
      const isHeld = owner?.network.ports.some((held) => overlaps(held, port))
      chosen.push(isHeld ? port : await probeHostPort(port, isGiven))
    }
    return chosen
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
