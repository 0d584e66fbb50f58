import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { PortForward } from '../hypervisors/hypervisor.ts'
import type { InstanceRows } from '../store/instances.ts'
import { PublishedPorts } from './published-ports.ts'

const ANY = { protocol: 'tcp', hostPort: 0, guestPort: 80 } as const

/** Rows that have no ports, and a host that offers the same ones to all who ask at once. */
function house(): PublishedPorts {
  const rows = { findPortOwner: () => undefined } as Partial<InstanceRows> as InstanceRows
  return new PublishedPorts(rows, '127.0.0.1', async (port: PortForward, isGiven = () => false) => {
    let chosen = { ...port, hostPort: port.hostPort === 0 ? 5000 : port.hostPort }
    await Promise.resolve()
    while (port.hostPort === 0 && isGiven(chosen)) chosen = { ...chosen, hostPort: chosen.hostPort + 1 }
    return chosen
  })
}

test('a port that was picked for one is not given to another before a row has it', async () => {
  const ports = house()
  const numbers = async (): Promise<{ readonly found: number[] } & Disposable> => {
    const chosen = await ports.choose([ANY, ANY])
    return { found: chosen.ports.map(({ hostPort }) => hostPort), [Symbol.dispose]: () => chosen[Symbol.dispose]() }
  }
  {
    using first = await numbers()
    const [second, third] = await Promise.all([numbers(), numbers()])
    assert.deepEqual([...first.found, ...second.found, ...third.found].sort(), [5000, 5001, 5002, 5003, 5004, 5005])
    await assert.rejects(ports.choose([{ ...ANY, hostPort: 5003 }]), { code: 'port_in_use' })
    second[Symbol.dispose]()
    third[Symbol.dispose]()
  }
  using again = await numbers()
  assert.deepEqual(again.found, [5000, 5001])
})

test('what was picked before a request was refused is free again', async () => {
  const ports = house()
  using other = await ports.choose([ANY])
  assert.equal(other.ports[0]?.hostPort, 5000)
  await assert.rejects(ports.choose([ANY, { ...ANY, hostPort: 5000 }]), { code: 'port_in_use' })
  using next = await ports.choose([ANY])
  assert.equal(next.ports[0]?.hostPort, 5001)
})

test('what is picked is none that was asked for beside it, whichever comes first', async () => {
  for (const asked of [
    [{ ...ANY, hostPort: 5000 }, ANY],
    [ANY, { ...ANY, hostPort: 5000 }],
  ]) {
    using chosen = await house().choose(asked)
    assert.deepEqual(chosen.ports.map(({ hostPort }) => hostPort).sort(), [5000, 5001])
  }
})
