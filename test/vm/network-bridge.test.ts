/** The bridge itself, without VMs: what the kernel is told, in how many calls, and how it is mended. In a network namespace of its own. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { parseSubnet4, parseSubnet6 } from '../../packages/daemon/src/lib/subnet.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { BridgedNetwork, type BridgedSettings } from '../../packages/daemon/src/network/bridged.ts'
import { macOf, type Nic } from '../../packages/daemon/src/network/network.ts'
import { Database } from '../../packages/daemon/src/store/database.ts'
import { LeaseRows } from '../../packages/daemon/src/store/leases.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { Scratch } from '../harness/scratch.ts'

const SETTINGS: BridgedSettings = {
  bridge: 'dmtest',
  subnet4: parseSubnet4('10.99.0.0/24') ?? assert.fail(),
  subnet6: parseSubnet6('fd99::/64') ?? assert.fail(),
  ...{ uplink: undefined, dns: [], opensHost: false },
}
const vm = {} as Vm
const ip = (...argv: string[]): string => execFileSync('ip', argv, { encoding: 'utf8' })
const nft = (...argv: string[]): string => execFileSync('nft', argv, { encoding: 'utf8' })
const devices = (): string[] =>
  readdirSync('/sys/class/net')
    .filter((name) => /^[du][0-9a-f]{2}-|^dmtest/.test(name))
    .sort()

interface House extends AsyncDisposable {
  readonly network: BridgedNetwork
  /** Programs that were started since it was asked last. */
  spawns(): string[]
  nic(name: string, more?: Partial<Nic>): Nic
  forget(name: string): void
}

/** A daemon's life over rows that stay. */
async function begin(db: Database, changes: Partial<BridgedSettings> = {}): Promise<House> {
  let spawned: string[] = []
  const network = new BridgedNetwork({
    settings: { ...SETTINGS, ...changes },
    leases: new LeaseRows(db),
    shimPath: join(REPOSITORY, 'build/shim/dormouse-shim'),
    log: silentLogger,
    onSpawn: (program) => void spawned.push(program),
  })
  return {
    network,
    spawns() {
      const all = spawned
      spawned = []
      return all
    },
    nic(name, more = {}) {
      const id = `${name}${'0'.repeat(24 - name.length)}`
      db.prepare('INSERT OR IGNORE INTO instances (id) VALUES (?)').run(id)
      network.lease(id)
      return { id, mac: macOf(id), ports: [], bandwidth: {}, ...more }
    },
    forget(name) {
      db.prepare('DELETE FROM instances WHERE id = ?').run(`${name}${'0'.repeat(24 - name.length)}`)
    },
    async [Symbol.asyncDispose]() {
      await network[Symbol.asyncDispose]()
    },
  }
}

/** As the store's, with as much of an instance's row as a lease needs. */
async function openRows(): Promise<AsyncDisposable & { readonly db: Database }> {
  const scratch = await Scratch.make()
  const db = Database.open(`${scratch.path}/db`)
  db.prepare('PRAGMA foreign_keys = OFF').run()
  db.prepare('DROP TABLE leases').run()
  db.prepare('CREATE TABLE guests (id TEXT PRIMARY KEY)').run()
  db.prepare('DROP TABLE published_ports').run()
  db.prepare('DROP TABLE instances').run()
  db.prepare('ALTER TABLE guests RENAME TO instances').run()
  db.prepare(
    'CREATE TABLE leases (instance_id TEXT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE, host INTEGER NOT NULL UNIQUE) STRICT',
  ).run()
  db.prepare('PRAGMA foreign_keys = ON').run()
  return {
    db,
    async [Symbol.asyncDispose]() {
      db.close()
      await scratch[Symbol.asyncDispose]()
    },
  }
}

if (inOwnNetwork(import.meta.filename)) {
  const web = { protocol: 'tcp', hostIp: '0.0.0.0', hostPort: 8080, guestPort: 80 } as const

  test('a guest is attached and detached in two calls, three with a rate, and nothing of it is left', async () => {
    await using rows = await openRows()
    await using house = await begin(rows.db)
    const { network } = house
    await network.recover([], makeStep())
    assert.deepEqual(house.spawns(), ['nft', 'nft', 'nft', 'ip'])
    const before = [devices(), nft('list', 'ruleset')]
    const a = house.nic('a')
    await network.attach(a, makeStep())
    assert.deepEqual(house.spawns(), ['nft', 'ip'])
    const b = house.nic('b', { ports: [web], bandwidth: { downloadBps: 1e6, uploadBps: 1e6 } })
    await network.attach(b, makeStep())
    assert.deepEqual(house.spawns(), ['nft', 'ip', 'tc'])
    assert.match(ip('-d', 'link', 'show', 'master', 'dmtest'), /isolated on/)
    assert.match(nft('list', 'map', 'inet', 'dmtest', 'ports4'), /tcp \. 8080 : 10\.99\.0\.3 \. 80/)
    assert.equal(await network.look(makeStep()), false)
    assert.deepEqual(house.spawns(), ['nft', 'nft'])
    await network.publish(vm, { ...b, ports: [{ ...web, hostPort: 8081 }] }, makeStep())
    assert.deepEqual(house.spawns(), ['nft'])
    await network.pace(vm, { ...b, bandwidth: { downloadBps: 2e6 } }, makeStep())
    for (const { id } of [a, b]) await network.detach(id, makeStep())
    assert.deepEqual([devices(), nft('list', 'ruleset')], before)
    house.spawns()
    for (const { id } of [a, b]) await network.detach(id, makeStep())
    assert.deepEqual(house.spawns(), [])
  })

  test('a guest whose way out is a proxy is led there, to its successor, and by the next daemon, whatever was flushed', async () => {
    await using rows = await openRows()
    const led = (): string => nft('list', 'map', 'inet', 'dmtest', 'proxies')
    const mediated = (): string => nft('list', 'set', 'inet', 'dmtest', 'mediated4')
    let a: Nic
    let port: number
    {
      await using house = await begin(rows.db)
      const { network } = house
      await network.recover([], makeStep())
      using door = await network.listenForProxy(makeStep())
      a = house.nic('a', { egress: { mode: 'all', proxyPort: door.port } })
      await network.attach(a, makeStep())
      for (const isLost of [false, true]) {
        if (isLost) nft('flush', 'ruleset')
        assert.equal(await network.look(makeStep()), isLost)
        assert.match(led(), new RegExp(`10\\.99\\.0\\.2 : ${door.port}`))
        assert.match(mediated(), /10\.99\.0\.2/)
      }
      using next = await network.listenForProxy(makeStep())
      port = next.port
      await Promise.all([network.publish(vm, { ...a, ports: [web] }, makeStep()), network.leadToProxy(a.id, port, makeStep())])
      assert.match(led(), new RegExp(`10\\.99\\.0\\.2 : ${port}`))
      assert.equal(await network.look(makeStep()), false)
      // Its proxy dies, and before that is known another's has the port.
      const b = house.nic('b', { egress: { mode: 'all', proxyPort: port } })
      await network.attach(b, makeStep())
      assert.equal(await network.look(makeStep()), false)
      await network.leadToProxy(a.id, undefined, makeStep())
      assert.match(led(), new RegExp(`\\{ 10\\.99\\.0\\.3 : ${port} \\}`))
      assert.match(nft('list', 'set', 'inet', 'dmtest', 'proxy_ports'), new RegExp(`\\{ ${port} \\}`))
      assert.match(mediated(), /10\.99\.0\.2/)
      assert.equal(await network.look(makeStep()), false)
      await network.detach(b.id, makeStep())
      assert.doesNotMatch(led(), /10\.99/)
      await network.leadToProxy(a.id, port, makeStep())
    }
    await using house = await begin(rows.db)
    const { network } = house
    // Its proxy has died meanwhile.
    await network.recover([{ ...a, ports: [web], egress: { mode: 'all' } }], makeStep())
    assert.doesNotMatch(led(), /10\.99\.0\.2/)
    assert.match(mediated(), /10\.99\.0\.2/)
    await network.leadToProxy(a.id, port, makeStep())
    assert.match(led(), new RegExp(`10\\.99\\.0\\.2 : ${port}`))
    await network.detach(a.id, makeStep())
    assert.doesNotMatch(led() + mediated(), /10\.99\.0\.2/)
  })

  test('a ruleset that was flushed, a bridge that was removed and a port that left it are put back', async () => {
    await using rows = await openRows()
    await using house = await begin(rows.db)
    const { network } = house
    await network.recover([], makeStep())
    const a = house.nic('a', { ports: [web] })
    await network.attach(a, makeStep())
    const rules = nft('list', 'ruleset')
    const [tap = ''] = devices().filter((name) => name.startsWith('d') && name !== 'dmtest')
    const deeds: readonly (() => unknown)[] = [
      () => nft('flush', 'ruleset'),
      () => nft('delete', 'table', 'inet', 'dmtest'),
      () => nft('flush', 'chain', 'inet', 'dmtest', 'to_host'),
      () => nft('delete', 'element', 'bridge', 'dmtest', 'senders4', `{ "${tap}" . ${a.mac} . 10.99.0.2 }`),
      () => nft('add', 'element', 'inet', 'dmtest', 'ports4', '{ tcp . 22 : 10.99.0.2 . 22 }'),
      () => ip('link', 'delete', 'dmtest'),
      () => ip('link', 'set', tap, 'nomaster'),
      () => ip('link', 'set', tap, 'type', 'bridge_slave', 'isolated', 'off'),
      () => ip('addr', 'flush', 'dev', 'dmtest'),
    ]
    for (const deed of deeds) {
      deed()
      assert.equal(await network.look(makeStep()), true, String(deed))
      assert.equal(await network.look(makeStep()), false, String(deed))
      assert.equal(nft('list', 'ruleset'), rules, String(deed))
      assert.match(ip('-d', 'link', 'show', tap), /master dmtest .*isolated on/s)
      assert.match(ip('addr', 'show', 'dmtest'), /inet 10\.99\.0\.1\/24.*inet6 fd99::1\/64/s)
    }
    // Found out by who needs it, too.
    nft('flush', 'ruleset')
    await network.attach(house.nic('b'), makeStep())
    assert.equal(await network.look(makeStep()), false)
    ip('link', 'delete', 'dmtest')
    await network.attach(house.nic('c'), makeStep())
    assert.equal(await network.look(makeStep()), false)
    for (const name of ['a', 'b', 'c']) await network.detach(house.nic(name).id, makeStep())
  })

  test('a daemon that comes after finds the TAPs of guests that live, and reaps all others', async () => {
    await using rows = await openRows()
    let a: Nic
    {
      await using house = await begin(rows.db)
      await house.network.recover([], makeStep())
      a = house.nic('a', { ports: [web], bandwidth: { uploadBps: 1e6 } })
      await house.network.attach(a, makeStep())
      await house.network.attach(house.nic('b', { bandwidth: { uploadBps: 1e6 } }), makeStep())
    }
    const tapOf = (letter: string): string | undefined => devices().find((name) => name.startsWith('d') && name.includes(`-${letter}0`))
    await using house = await begin(rows.db)
    ip('link', 'delete', 'dmtest')
    await house.network.recover([a], makeStep())
    assert.ok(tapOf('a'))
    assert.equal(devices().length, 3, devices().join())
    assert.equal(await house.network.look(makeStep()), false)
    assert.match(execFileSync('tc', ['qdisc'], { encoding: 'utf8' }), /tbf .* rate 8Mbit/)
    await house.network.detach(a.id, makeStep())
    assert.deepEqual(devices(), ['dmtest'])
  })

  test('addresses are kept, go round, and run out with a sentence', async () => {
    await using rows = await openRows()
    await using house = await begin(rows.db, { subnet4: parseSubnet4('10.99.0.0/29') ?? assert.fail() })
    const addresses = ['a', 'b', 'c', 'd', 'e'].map((name) => house.network.addressOf(house.nic(name).id))
    assert.deepEqual(addresses, ['10.99.0.2', '10.99.0.3', '10.99.0.4', '10.99.0.5', '10.99.0.6'])
    assert.throws(() => house.nic('f'), { code: 'insufficient_resources', message: /10\.99\.0\.0\/29 is leased/ })
    house.forget('c')
    assert.equal(house.network.addressOf(house.nic('f').id), '10.99.0.4')
    assert.equal(house.network.addressOf(house.nic('a').id), '10.99.0.2')
  })

  test('a subnet that the host reaches otherwise is refused, naming both', async () => {
    await using rows = await openRows()
    ip('link', 'add', 'other', 'type', 'veth', 'peer', 'name', 'others')
    ip('link', 'set', 'other', 'up')
    ip('link', 'set', 'others', 'up')
    ip('addr', 'add', '10.99.0.130/25', 'dev', 'other')
    try {
      await using house = await begin(rows.db)
      await assert.rejects(house.network.recover([], makeStep()), {
        code: 'conflict',
        message: /10\.99\.0\.0\/24 .* 10\.99\.0\.128\/25, .* other/,
      })
    } finally {
      ip('link', 'delete', 'other')
    }
  })

  test('an attach that fails leaves nothing, and says which host port is taken by whom', async () => {
    await using rows = await openRows()
    await using house = await begin(rows.db)
    await house.network.recover([], makeStep())
    const before = [devices(), nft('list', 'ruleset')]
    const server = (await import('node:net')).createServer().listen(8080)
    await new Promise((resolve) => server.once('listening', resolve))
    await assert.rejects(house.network.attach(house.nic('a', { ports: [web] }), makeStep()), { code: 'port_in_use' })
    server.close()
    await assert.rejects(house.network.attach(house.nic('a', { bandwidth: { downloadBps: Number.NaN } }), makeStep()))
    assert.deepEqual([devices(), nft('list', 'ruleset')], before)
    assert.ok(existsSync('/sys/class/net/dmtest'))
  })
}
