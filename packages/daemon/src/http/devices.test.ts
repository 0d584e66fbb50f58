import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Devices } from '../devices/devices.ts'
import { FakeSysfs } from '../devices/fake-sysfs.ts'
import { PciIds } from '../devices/pci-ids.ts'
import { silentLogger } from '../log.ts'
import { Database } from '../store/database.ts'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

test('devices of the host that could be registered come in pages as well, by address', async (t) => {
  const addresses = ['0000:17:00.0', '0000:65:00.0', '0000:65:00.1', '0000:ca:00.0']
  using sysfs = new FakeSysfs(addresses.map((address, group) => ({ address, vendor: '10de', device: '26b9', classCode: '030200', group })))
  const db = Database.open(':memory:')
  const devices = new Devices({
    ...{ db, sysfs, pciIds: new PciIds([]), log: silentLogger, isRoot: true },
    events: { record: () => undefined },
  })
  const server = new HttpServer({ ...fakeUses(), devices })
  t.after(() => server.close())
  const ask = (query: string) => server.host.inject({ url: `/devices/available${query}` })
  const shown = (answer: { json(): { pci_address: string }[] }) => answer.json().map(({ pci_address }) => pci_address)
  const all = await ask('')
  assert.deepEqual([shown(all), all.headers['x-next-cursor']], [addresses, undefined])
  const first = await ask('?limit=3')
  assert.deepEqual(shown(first), addresses.slice(0, 3))
  // What ended the page is registered meanwhile.
  await devices.register({ pciAddress: '0000:65:00.1', name: 'gpu' })
  const second = await ask(`?limit=3&cursor=${first.headers['x-next-cursor']}`)
  assert.deepEqual([shown(second), second.headers['x-next-cursor']], [['0000:ca:00.0'], undefined])
})
