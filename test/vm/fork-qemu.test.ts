/** Forks of real VMs that run: the child has it all, the parent notices nothing, and however many there are, each costs what it changes. */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { after, before, test } from 'node:test'
import { readJournal } from '../../packages/daemon/src/guest/journal.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { programClosure } from '../harness/program-closure.ts'
import { assertHostInOrder, disksOf, type ShownInstance } from './house-in-order.ts'
import { InstanceStory, portOf } from './instance-story.ts'

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({
    driver: 'qemu-microvm',
    env: { DORMOUSE_CPU_RATIO: '32', DORMOUSE_MEMORY_RATIO: '4' },
    // Debian's redis-check-rdb is the server, when it is called so.
    image: { programs: await programClosure('/usr/bin/redis-check-rdb', '/usr/bin/redis-server') },
  })
})
after(() => story?.[Symbol.asyncDispose]())

const REDIS_PORT = 6379
const REDIS = ['/usr/bin/redis-server', '--save', '', '--protected-mode', 'no', '--bind', '0.0.0.0', '--port', `${REDIS_PORT}`]
const KEYS = 2000
const CLIENTS = 4

/** As much of a client of redis as the story needs: one command at a time, words and numbers for answers. */
class Redis implements Disposable {
  readonly #socket: Socket
  #said = ''
  #heard: PromiseWithResolvers<void> = Promise.withResolvers()
  #ended: Error | undefined

  private constructor(port: number) {
    this.#socket = connect(port, '127.0.0.1')
    this.#socket.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text
      this.#heard.resolve()
    })
    for (const end of ['error', 'close'] as const) {
      this.#socket.on(end, (cause) => {
        this.#ended ??= new Error(`The connection ended: ${end}`, { cause })
        this.#heard.resolve()
      })
    }
  }

  /** Of one that has just been started: it may not listen yet. */
  static async of(instance: ShownInstance): Promise<Redis> {
    const begin = async () => {
      const client = new Redis(portOf(instance))
      const answer = await client.ask('PING').catch(() => undefined)
      if (answer !== undefined) return client
      client[Symbol.dispose]()
      return undefined
    }
    return pollUntil(`redis of ${instance.name} to answer`, begin, { signal: AbortSignal.timeout(30_000) }, { everyMs: 50 })
  }

  async ask(...words: readonly string[]): Promise<string> {
    const bulk = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`)
    this.#socket.write(`*${words.length}\r\n${bulk.join('')}`)
    for (;;) {
      const answer = this.#take()
      if (answer !== undefined) return answer
      if (this.#ended) throw this.#ended
      this.#heard = Promise.withResolvers()
      await this.#heard.promise
    }
  }

  #take(): string | undefined {
    const line = /^([+:$-])(.*)\r\n/.exec(this.#said)
    if (line === null) return undefined
    const [whole, kind, rest = ''] = line
    if (kind === '-') throw new Error(`redis refused: ${rest}`)
    const length = kind === '$' ? Math.max(0, Number(rest)) : 0
    const end = whole.length + (kind === '$' && Number(rest) >= 0 ? length + 2 : 0)
    if (this.#said.length < end) return undefined
    const answer = kind === '$' ? this.#said.slice(whole.length, whole.length + length) : rest
    this.#said = this.#said.slice(end)
    return answer
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}

/** Counts a key up without a pause, each answer one more than the last, until it is told to end. */
async function countUp(client: Redis, key: string, isOver: () => boolean): Promise<{ count: number; longestMs: number }> {
  let count = 0
  let longestMs = 0
  while (!isOver()) {
    const from = performance.now()
    const answer = Number(await client.ask('INCR', key))
    longestMs = Math.max(longestMs, performance.now() - from)
    assert.equal(answer, ++count)
  }
  return { count, longestMs }
}

const ports = { network: { ports: [{ host_port: 0, guest_port: REDIS_PORT, host_ip: '127.0.0.1' }] } }

test('a fork of a redis-server that serves has its data; the clients of the one that was forked see no error and go on', {
  timeout: 180_000,
}, async (t) => {
  await story.daemon.client.post('/instances?wait=running', {
    ...{ name: 'redis', image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB', cmd: REDIS },
    ...ports,
  })
  const parent = await story.expect('redis', 'Running')
  using filler = await Redis.of(parent)
  const pairs = Array.from({ length: KEYS }, (_, key) => [`key:${key}`, `value of ${key}`])
  await filler.ask('MSET', ...pairs.flat())
  const clients = await Promise.all(Array.from({ length: CLIENTS }, () => Redis.of(parent)))
  await using end = new AsyncDisposableStack()
  for (const client of clients) end.use(client)
  let isOver = false
  const counting = Promise.all(clients.map((client, index) => countUp(client, `count:${index}`, () => isOver)))
  counting.catch(() => undefined)
  const counted = async (by: Redis): Promise<number[]> => {
    const counts: number[] = []
    for (let index = 0; index < CLIENTS; index++) counts.push(Number(await by.ask('GET', `count:${index}`)))
    return counts
  }
  await pollUntil('the clients to count', async () => (await counted(filler)).every((count) => count > 10), {
    signal: AbortSignal.timeout(20_000),
  })

  const before = await counted(filler)
  await story.daemon.client.post('/instances/redis/fork', { name: 'copy', from_running: true, target_state: 'Running', ...ports })
  const afterwards = await counted(filler)
  await pollUntil('the clients to go on', async () => (await counted(filler)).every((count, at) => count > (afterwards[at] ?? 0)), {
    signal: AbortSignal.timeout(20_000),
  })
  isOver = true
  const told = await counting
  t.diagnostic(`the longest that a client waited: ${Math.max(...told.map(({ longestMs }) => longestMs)).toFixed(1)} ms`)

  const child = await story.expect('copy', 'Running')
  using asker = await Redis.of(child)
  const inCopy = await counted(asker)
  inCopy.forEach((count, at) => {
    assert.ok(count >= (before[at] ?? 0) && count <= (afterwards[at] ?? 0), `${before[at]} ${count} ${afterwards[at]}`)
  })
  assert.equal(await asker.ask('DBSIZE'), `${KEYS + CLIENTS}`)
  for (let key = 0; key < KEYS; key += 97) assert.equal(await asker.ask('GET', `key:${key}`), `value of ${key}`)
  // Whoever was connected to the parent is not connected to the child: it was told so, and has let go of them.
  const connected = async () => (await asker.ask('CLIENT', 'LIST')).trim().split('\n').length
  await pollUntil('the child to let go of inherited connections', async () => (await connected()) === 1, {
    signal: AbortSignal.timeout(10_000),
  })
  assert.match(await asker.ask('INFO', 'clients'), /connected_clients:1\r/)

  await asker.ask('SET', 'key:0', 'of the child')
  await filler.ask('SET', 'key:1', 'of the parent')
  assert.equal(await filler.ask('GET', 'key:0'), 'value of 0')
  assert.equal(await asker.ask('GET', 'key:1'), 'value of 1')

  const identities = await Promise.all([parent, child].map(identityOf))
  assert.deepEqual([identities[0]?.hostname, identities[1]?.hostname], ['redis', 'copy'])
  for (const column of ['hostname', 'machineId', 'mac', 'chance', 'nonce'] as const) {
    assert.notEqual(identities[0]?.[column], identities[1]?.[column], column)
  }
  await story.assertInOrder()
  await story.remove('redis', 'copy')
})

interface Identity {
  readonly hostname: string
  readonly machineId: string
  readonly mac: string
  readonly chance: string
  /** The agent's, from the journal. */
  readonly nonce: string
}

async function identityOf({ id, name, network }: ShownInstance): Promise<Identity> {
  const script = 'hostname; cat /etc/machine-id /sys/class/net/eth0/address; head -c 16 /dev/urandom | xxd -p'
  const [hostname = '', machineId = '', mac = '', chance = ''] = (await story.sh(name, script)).split('\n')
  assert.equal(mac, network.mac)
  const journal = await readJournal(story.daemon.paths.instanceLogs(id).journal)
  return { hostname, machineId, mac, chance, nonce: journal.at(-1)?.boot ?? '' }
}

test('a fork is in the state that is asked for, whatever its source is in: awake, asleep or stopped', { timeout: 120_000 }, async () => {
  const a = await story.run('a')
  const { born, boot } = await story.look(a)
  const written = 'on the disk'
  await story.sh('a', `echo ${written} > /root/file; sync`)
  /** It has booted by itself, from the disk as it was. */
  const assertBooted = async (name: string): Promise<void> => {
    const instance = await story.expect(name, 'Running')
    await story.untilItListens(instance)
    const now = await story.look(instance)
    assert.notEqual(now.boot, boot)
    assert.notEqual(now.born, born)
    assert.equal(await story.sh(name, 'cat /root/file; hostname'), `${written}\n${name}`)
  }
  const start = async (name: string): Promise<void> => void (await story.daemon.client.post(`/instances/${name}/start?wait=running`, {}))

  const asleep = await story.fork('a', { name: 'asleep', from_running: true, target_state: 'Standby' })
  const still = await story.fork('a', { name: 'still', from_running: true, target_state: 'Stopped' })
  assert.deepEqual([asleep.state, still.state, still.exit_code], ['Standby', 'Stopped', null])
  await story.assertInOrder()
  const woken = await story.look(await story.restore('asleep'))
  assert.deepEqual([woken.boot, woken.born], [boot, born])
  assert.equal(await story.sh('asleep', 'cat /root/file; hostname'), `${written}\nasleep`)
  await start('still')
  await assertBooted('still')
  await story.remove('asleep', 'still')

  await story.standby('a')
  assert.equal((await story.fork('a', { name: 'still', target_state: 'Stopped' })).state, 'Stopped')
  await start('still')
  await assertBooted('still')
  const again = await story.look(await story.restore('a'))
  assert.deepEqual([again.boot, again.born], [boot, born])
  await story.remove('still')

  await story.daemon.client.post('/instances/a/stop', {})
  assert.equal((await story.fork('a', { name: 'awake', target_state: 'Running' })).state, 'Running')
  await assertBooted('awake')
  assert.equal((await story.fork('a', { name: 'asleep', target_state: 'Standby' })).state, 'Standby')
  await story.restore('asleep')
  await assertBooted('asleep')
  await story.expect('a', 'Stopped')
  await story.assertInOrder()
  await story.remove('a', 'awake', 'asleep')
})

test('a fork of a fork of a fork, ten times: each has what those before it wrote, and their disks do not grow longer and longer', {
  timeout: 300_000,
}, async () => {
  const GENERATIONS = 10
  const first = await story.run('line-0')
  const { born } = await story.look(first)
  const layers = ({ id }: ShownInstance): readonly string[] => disksOf(story.dir).get(id) ?? []
  for (let n = 1; n <= GENERATIONS; n++) {
    const [from, to] = [`line-${n - 1}`, `line-${n}`]
    await story.sh(from, `echo ${n - 1} > /root/gen-${n - 1}`)
    const child = await story.fork(from, { name: to, from_running: true, target_state: 'Running' })
    await story.sh(from, 'echo not seen by the child > /root/afterwards')
    assert.equal(await story.sh(to, 'cat /root/gen-* | sort -n | xargs; hostname'), `${[...Array(n).keys()].join(' ')}\n${to}`)
    assert.equal(await story.sh(to, 'ls /root/afterwards 2> /dev/null || true'), '')
    assert.equal((await story.look(child)).born, born)
    for (const name of [from, to]) assert.ok(layers(await story.get(name)).length <= 9, `${name} has ${layers(await story.get(name))}`)
    // One of them stays, to see that no one takes away or writes what it stands on.
    if (n !== 4) await story.remove(from)
  }
  const last = `line-${GENERATIONS}`
  await story.sh(last, `echo ${GENERATIONS} > /root/gen-${GENERATIONS}; sync`)
  await story.standby(last)
  await story.restore(last)
  const all = [...Array(GENERATIONS + 1).keys()].join(' ')
  const files = 'cat /root/gen-* | sort -n | xargs'
  assert.equal(await story.sh(last, files), all)
  await story.daemon.client.post(`/instances/${last}/stop`)
  await story.daemon.client.post(`/instances/${last}/start?wait=running`, {})
  assert.equal(await story.sh(last, files), all)
  assert.equal(await story.sh('line-3', `${files}; cat /root/afterwards`), '0 1 2 3\nnot seen by the child')
  await story.assertInOrder()
  await story.remove(last, 'line-3')
  await assertHostInOrder(story.dir, [])
})

/** The guest's RAM in its VMM: which memory it maps, and what it has for itself, in bytes. */
async function ramOf(instance: ShownInstance): Promise<{ base: string; ownBytes: number }> {
  const mappings = (await readFile(`/proc/${await story.vmmOf(instance)}/smaps`, 'latin1')).split(/\n(?=[0-9a-f]+-)/)
  const ram = mappings.find((text) => /^\S+ rw-p /.test(text) && Number(/^Size: +(\d+)/m.exec(text)?.[1]) === 256 * 1024) ?? ''
  const [, , , device, inode] = ram.split(/\s+/)
  const kib = (field: string): number => Number(new RegExp(`^${field}: +(\\d+)`, 'm').exec(ram)?.[1])
  return { base: `${device} ${inode}`, ownBytes: (kib('Anonymous') + kib('Swap')) * 1024 }
}

test('twenty forks at once stand on one base, and each has for itself what it has changed', { timeout: 300_000 }, async (t) => {
  const FORKS = 20
  const HELD_MIB = 96
  const source = await story.run('many', { cmd: ['/bin/wakeful', '80', `${HELD_MIB}`] })
  await story.ask(source, `fill 0 ${HELD_MIB * 256} 5`)
  const sum = await story.ask(source, 'sum')
  const before = await story.look(source)
  const from = performance.now()
  const forks = await Promise.all(
    Array.from({ length: FORKS }, (_, n) => story.fork('many', { name: `fork-${n}`, from_running: true, target_state: 'Running' })),
  )
  t.diagnostic(`${FORKS} forks were there after ${Math.round(performance.now() - from)} ms`)
  assert.equal((await story.logged('VM captured, and goes on', source)).length, 1)
  const looks = []
  for (const fork of forks) looks.push(await story.look(fork))
  for (const look of looks) assert.equal(look.born, before.born)
  assert.equal(new Set(looks.map(({ chance }) => chance)).size, FORKS)
  const rams = await Promise.all(forks.map(ramOf))
  assert.equal(new Set(rams.map(({ base }) => base)).size, 1)
  const most = Math.max(...rams.map(({ ownBytes }) => ownBytes))
  t.diagnostic(`the most that one has for itself: ${(most / 2 ** 20).toFixed(1)} MiB`)
  assert.ok(most <= 16 * 2 ** 20, `one has ${most} bytes for itself`)
  // What one of them writes no other reads.
  const [writer, reader] = forks
  assert.ok(writer && reader)
  await story.ask(writer, `fill 0 ${HELD_MIB * 256} 6`)
  assert.notEqual(await story.ask(writer, 'sum'), sum)
  assert.equal(await story.ask(reader, 'sum'), sum)
  assert.equal(await story.ask(source, 'sum'), sum)
  await story.assertInOrder()
  await story.remove('many', ...forks.map(({ name }) => name))
  await assertHostInOrder(story.dir, [])
})
