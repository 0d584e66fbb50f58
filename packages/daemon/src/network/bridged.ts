/**
 * Instances on a bridge of the host's, for a daemon that is root:
 *
 *   guest ─ QEMU ─ TAP ─► bridge (gateway) ─► the host's routing, addresses changed ─► uplink
 *                   ╰ tc: how fast    ╰ nft: whose frames, and where to
 *
 * What should be is known here, from leases and from what is attached; the kernel is told in one call for each step, and looked at
 * again: before each attach, and now and then while anything is attached. What someone took away by hand is put back.
 */
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { basename } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { ListeningSocket } from '../egress/egress.ts'
import { assertPortsFree } from '../host/assert-ports-free.ts'
import { runCommand } from '../host/run-command.ts'
import type { IgnoredConnections, Inbound, Vm } from '../hypervisors/hypervisor.ts'
import type { NicSpec } from '../hypervisors/vm-spec.ts'
import type { Step } from '../lib/step.ts'
import { address4, address6, formatSubnet4, formatSubnet6, overlaps4, overlaps6, type Subnet4, type Subnet6 } from '../lib/subnet.ts'
import type { Logger } from '../log.ts'
import type { LeaseRows } from '../store/leases.ts'
import { GATEWAY, nextHost } from './address-plan.ts'
import { Conntrack } from './conntrack.ts'
import { hasIpv6, readMtu, readResolver, readRoutes, uplinkOf } from './host-network.ts'
import type { GuestNetwork, GuestTraffic, Network, Nic } from './network.ts'
import {
  type BridgeDevice,
  bridgeLines,
  bridgeMacOf,
  deleteLines,
  deviceNameOf,
  type GuestDevice,
  ifbLines,
  ifbPrefixOf,
  joinLines,
  neighbourLines,
  type Rates,
  shapeLines,
  tapLines,
  tapPrefixOf,
} from './plumbing.ts'
import {
  type BridgeRules,
  changeOf,
  elementsOf,
  type GuestRules,
  type ListedRules,
  readListing,
  rulesetOf,
  sameElements,
} from './ruleset.ts'

export interface BridgedSettings {
  readonly bridge: string
  readonly subnet4: Subnet4
  readonly subnet6: Subnet6
  /** Undefined: any device. */
  readonly uplink: string | undefined
  /** Told to guests; empty: the gateway, which hands on to the host's own resolver. */
  readonly dns: readonly string[]
  readonly opensHost: boolean
}

export interface BridgedUses {
  readonly settings: BridgedSettings
  readonly leases: LeaseRows
  readonly log: Logger
  /** Follows the kernel's connections. */
  readonly shimPath: string
  /** For tests: called with the program of each process that is started. */
  readonly onSpawn?: (program: string) => void
  /** How often what is there is looked at, while anything is attached. */
  readonly lookEveryMs?: number
}

/** An instance whose TAP is there. */
interface Attached {
  readonly device: GuestDevice
  readonly rules: GuestRules
  readonly rates: Rates
}

const LOOK_EVERY_MS = 15_000
const LOOK_LIMIT_MS = 10_000
const PROXY_BACKLOG = 1024
const WIRE_MTU = 1500
const MIN_MTU = 1280

export class BridgedNetwork implements Network, AsyncDisposable {
  readonly kind = 'bridged'
  /** The contract's word for it. Connections over IPv6 are counted all the same. */
  readonly tracking = { mode: 'conntrack_events_v4_tcp', isRemembered: false } as const
  readonly model
  readonly proxyAddress: string
  readonly guestSubnets: readonly string[]
  readonly #uses: BridgedUses
  readonly #device: BridgeDevice
  readonly #tapPrefix: string
  readonly #ifbPrefix: string
  readonly #attached = new Map<string, Attached>()
  readonly #conntrack: Conntrack
  #resolver: string | undefined
  /** The rules as the kernel spells them, elements apart; undefined: none of ours are known to be there. */
  #fixed: string | undefined
  #lastHost = GATEWAY
  /** One change at a time. */
  #turn: Promise<unknown> = Promise.resolve()
  #timer: NodeJS.Timeout | undefined
  #isClosed = false

  constructor(uses: BridgedUses) {
    const { bridge, subnet4, subnet6, uplink } = uses.settings
    this.#uses = uses
    this.#conntrack = new Conntrack({ shimPath: uses.shimPath, subnet4, subnet6, log: uses.log })
    this.#tapPrefix = tapPrefixOf(bridge)
    this.#ifbPrefix = ifbPrefixOf(bridge)
    const gateway = address4(subnet4, GATEWAY)
    this.proxyAddress = gateway
    this.guestSubnets = [formatSubnet4(subnet4), formatSubnet6(subnet6)]
    this.model = { model: 'bridge', gateway, subnet: formatSubnet4(subnet4) } as const
    const out = uplink ?? uplinkOf(readRoutes())
    this.#device = {
      name: bridge,
      mac: bridgeMacOf(bridge),
      mtu: Math.max(MIN_MTU, Math.min(WIRE_MTU, (out === undefined ? undefined : readMtu(out)) ?? WIRE_MTU)),
      addresses: [`${gateway}/${subnet4.prefix}`, ...(hasIpv6() ? [`${address6(subnet6, GATEWAY)}/${subnet6.prefix}`] : [])],
    }
  }

  lease(id: string): string {
    const { leases, settings } = this.#uses
    const held = this.addressOf(id)
    if (held !== undefined) return held
    const host = nextHost(settings.subnet4, leases.taken(), this.#lastHost)
    if (host === undefined) {
      throw new AppError('insufficient_resources', `Every address of the subnet ${formatSubnet4(settings.subnet4)} is leased`, {
        hint: 'Delete instances that are not needed, or set a larger DORMOUSE_SUBNET and start the daemon again',
      })
    }
    leases.put(id, host)
    this.#lastHost = host
    return address4(settings.subnet4, host)
  }

  addressOf(id: string): string | undefined {
    const { leases, settings } = this.#uses
    const host = leases.find(id)
    // A subnet that was made smaller has no such address any more.
    const isIn = host !== undefined && host < 2 ** (32 - settings.subnet4.prefix) - 1
    return isIn ? address4(settings.subnet4, host) : undefined
  }

  guestNetworkOf({ id, mac }: Pick<Nic, 'id' | 'mac'>): GuestNetwork {
    const { subnet4, subnet6, dns } = this.#uses.settings
    const [ipv4, ipv6] = this.#addressesOf(id)
    const gateways = { ipv4: address4(subnet4, GATEWAY), ipv6: address6(subnet6, GATEWAY) }
    return {
      mac,
      ipv4: { address: ipv4, prefix: subnet4.prefix, gateway: gateways.ipv4 },
      ipv6: { address: ipv6, prefix: subnet6.prefix, gateway: gateways.ipv6 },
      dns: dns.length > 0 ? dns : [readResolver()?.includes(':') ? gateways.ipv6 : gateways.ipv4],
      mtu: this.#device.mtu,
    }
  }

  nicSpecOf({ id, mac }: Nic): NicSpec {
    return { mac, backend: 'tap', tap: this.#tapOf(id) }
  }

  async attach(nic: Nic, step: Step): Promise<void> {
    await assertPortsFree(nic.ports)
    await this.#inTurn(async () => {
      const mine = this.#attachedOf(nic)
      const { tap } = mine.device
      await this.#ensureReady(step)
      try {
        const ifb = this.#ifbOf(nic.id)
        const lines = [
          ...deleteLines([tap, ifb].filter(isDevice)),
          ...tapLines(mine.device, this.#device),
          ...neighbourLines(mine.device, this.#device.name),
          ...(mine.rates.uploadBps === undefined ? [] : ifbLines(ifb)),
        ]
        // At once: what comes from a TAP that is in no rule yet is dropped.
        await bothOf(this.#setGuest(nic.id, mine, step), this.#ip(lines, step))
        await this.#tc(shapeLines(tap, ifb, {}, mine.rates), step)
      } catch (error) {
        await this.#remove(nic.id, undoStep(step)).catch((err: unknown) => step.log.error({ err }, 'a TAP could not be taken away again'))
        throw error
      }
      this.#lookLater()
    })
  }

  async detach(id: string, step: Step): Promise<void> {
    if (!this.#attached.has(id) && !isDevice(this.#tapOf(id)) && !isDevice(this.#ifbOf(id))) return
    await this.#inTurn(() => this.#remove(id, step))
  }

  async publish(_vm: Vm, nic: Nic, step: Step): Promise<void> {
    const before = this.#attached.get(nic.id)
    if (before === undefined) throw notOnBridge()
    const isNew = (port: Nic['ports'][number]): boolean =>
      !before.rules.ports.some(
        ({ protocol, hostIp, hostPort }) => protocol === port.protocol && hostIp === port.hostIp && hostPort === port.hostPort,
      )
    await assertPortsFree(nic.ports.filter(isNew))
    await this.#inTurn(async () => {
      // Another change may have been made while the ports were looked at.
      const now = this.#attached.get(nic.id)
      if (now === undefined) throw notOnBridge()
      await this.#setGuest(nic.id, { ...now, rules: { ...now.rules, ports: nic.ports } }, step)
    })
  }

  /** At the gateway, at a port that is free: the rules lead each guest to its own. */
  async listenForProxy(step: Step): Promise<ListeningSocket> {
    await this.#inTurn(() => this.#ensureReady(step))
    // No one is led here yet.
    const server = createServer((socket) => socket.destroy())
    using undo = new DisposableStack()
    undo.defer(() => void server.close())
    server.listen({ host: this.proxyAddress, port: 0, backlog: PROXY_BACKLOG })
    await once(server, 'listening', { signal: step.signal })
    // Node has no word for a listening socket's descriptor.
    const { fd } = (server as unknown as { readonly _handle: { readonly fd: number } })._handle
    const { port } = server.address() as AddressInfo
    const held = undo.move()
    return { fd, port, [Symbol.dispose]: () => held.dispose() }
  }

  async leadToProxy(id: string, proxyPort: number | undefined, step: Step): Promise<void> {
    await this.#inTurn(async () => {
      const before = this.#attached.get(id)
      if (before?.rules.egress === undefined) return
      await this.#setGuest(id, { ...before, rules: { ...before.rules, egress: { ...before.rules.egress, proxyPort } } }, step)
    })
  }

  async pace(_vm: Vm, nic: Nic, step: Step): Promise<void> {
    await this.#inTurn(async () => {
      const before = this.#attached.get(nic.id)
      if (before === undefined) throw notOnBridge()
      await this.#shape(nic.id, before, nic.bandwidth, step)
      this.#attached.set(nic.id, { ...before, rates: nic.bandwidth })
    })
  }

  traffic(id: string): GuestTraffic | undefined {
    const count = (name: string): number => Number(readText(`/sys/class/net/${this.#tapOf(id)}/statistics/${name}`) || 0)
    // What the TAP sends the guest receives.
    return this.#attached.has(id) ? { receivedBytes: count('tx_bytes'), sentBytes: count('rx_bytes') } : undefined
  }

  async inbound(_vm: Vm, { id }: Nic, ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    const host = this.#uses.leases.find(id)
    return host === undefined ? { active: 0 } : this.#conntrack.inbound(host, ignored, step)
  }

  async recover(live: readonly Nic[], step: Step): Promise<void> {
    await this.#inTurn(async () => {
      this.#assertNoOverlap()
      const there = live.filter(({ id }) => isDevice(this.#tapOf(id)))
      for (const nic of there) this.#attached.set(nic.id, this.#attachedOf(nic))
      for (const { id } of live)
        if (!this.#attached.has(id))
          step.log.warn({ instance: id }, 'it has no TAP: if its VM runs, it has no network until it starts again')
      const known = new Set(there.flatMap(({ id }) => [this.#tapOf(id), this.#ifbOf(id)]))
      const strays = devices().filter((name) => (name.startsWith(this.#tapPrefix) || name.startsWith(this.#ifbPrefix)) && !known.has(name))
      if (strays.length > 0) step.log.warn({ devices: strays }, 'devices that belong to no instance are removed')
      await this.#ip(deleteLines(strays), step)
      await this.#repair(step)
      await this.#shapeAnew(there, step)
      this.#lookLater()
    })
  }

  /** Looks at what is there and puts back what is missing. True when it had to. */
  look(step: Step): Promise<boolean> {
    return this.#inTurn(async () => {
      const why = await this.#whatIsAmiss(step)
      if (why === undefined) return false
      this.#uses.log.warn({ bridge: this.#device.name, why }, 'the network of the instances was changed from outside and is mended')
      await this.#repair(step)
      return true
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#timer)
    await this.#conntrack[Symbol.asyncDispose]()
    await this.#turn.catch(() => undefined)
  }

  // What should be

  #tapOf(id: string): string {
    return deviceNameOf(this.#tapPrefix, id)
  }
  #ifbOf(id: string): string {
    return deviceNameOf(this.#ifbPrefix, id)
  }

  #addressesOf(id: string): [ipv4: string, ipv6: string] {
    const { leases, settings } = this.#uses
    const host = leases.find(id)
    if (host === undefined) throw new AppError('internal_error', `The instance ${id} has no address`)
    return [address4(settings.subnet4, host), address6(settings.subnet6, host)]
  }

  #attachedOf({ id, mac, ports, bandwidth, egress }: Nic): Attached {
    const [ipv4, ipv6] = this.#addressesOf(id)
    const tap = this.#tapOf(id)
    return {
      device: { tap, addresses: hasIpv6() ? [ipv4, ipv6] : [ipv4] },
      rules: { tap, mac, ipv4, ipv6, ports, ...(egress && { egress }) },
      rates: bandwidth,
    }
  }

  #rules(): BridgeRules {
    const { bridge, subnet4, subnet6, uplink, opensHost } = this.#uses.settings
    return {
      table: bridge,
      bridge,
      tapPrefix: this.#tapPrefix,
      subnet4,
      subnet6,
      gateway4: address4(subnet4, GATEWAY),
      gateway6: address6(subnet6, GATEWAY),
      uplink,
      resolver: this.#resolver,
      opensHost,
    }
  }

  // What is

  async #ensureReady(step: Step): Promise<void> {
    if (this.#fixed !== undefined && isDevice(this.#device.name)) return
    this.#assertNoOverlap()
    await this.#repair(step)
  }

  /** A sentence; undefined when all is as it should be. */
  async #whatIsAmiss(step: Step): Promise<string | undefined> {
    const { name, addresses } = this.#device
    if (!isDevice(name)) return 'the bridge is gone'
    const { ipv4 } = readRoutes()
    const { subnet4, subnet6 } = this.#uses.settings
    if (!ipv4.some(({ device, base }) => device === name && base === subnet4.base)) return 'the gateway has lost its address'
    if (addresses.length > 1 && !readText('/proc/net/if_inet6').includes((subnet6.base + BigInt(GATEWAY)).toString(16).padStart(32, '0')))
      return 'the gateway has lost its IPv6 address'
    for (const { device } of this.#attached.values()) {
      if (!isDevice(device.tap)) continue
      if (masterOf(device.tap) !== name || readText(`/sys/class/net/${device.tap}/brport/isolated`).trim() !== '1')
        return `${device.tap} has left the bridge`
    }
    if (readText(FORWARD4).trim() !== '1') return 'the host does not forward'
    if (readResolver() !== this.#resolver) return "the host's resolver is another"
    const listed = await this.#list(step)
    if (listed === undefined) return 'the rules are gone'
    const isRight = listed.fixed === this.#fixed && sameElements(listed.elements, elementsOf(this.#guests()))
    return isRight ? undefined : 'the rules are others'
  }

  /** All of it anew, without a moment in between where less is closed. */
  async #repair(step: Step): Promise<void> {
    this.#fixed = undefined
    this.#resolver = readResolver()
    await this.#nft(rulesetOf(this.#rules(), this.#guests()), step)
    const listed = await this.#list(step)
    if (listed === undefined || !sameElements(listed.elements, elementsOf(this.#guests()))) {
      throw new AppError('internal_error', 'The kernel did not take the rules of the network as they were given', { hint: HINT })
    }
    const { name, mtu, addresses } = this.#device
    const taps = [...this.#attached.values()].filter(({ device }) => isDevice(device.tap))
    await this.#ip(
      [
        ...(isDevice(name)
          ? addresses.map((address) => `addr replace ${address} dev ${name}`).concat(`link set dev ${name} up`)
          : bridgeLines(this.#device)),
        ...taps.flatMap(({ device }) => joinLines(device.tap, { name, mtu })),
        ...taps.flatMap(({ device }) => neighbourLines(device, name)),
      ],
      step,
    )
    this.#forward()
    this.#fixed = listed.fixed
  }

  #guests(): GuestRules[] {
    return [...this.#attached.values()].map(({ rules }) => rules)
  }

  /** What the kernel is told of one guest becomes `after`; when the rules it was told before are gone, all of them are told again. */
  async #setGuest(id: string, after: Attached | undefined, step: Step): Promise<void> {
    const before = this.#attached.get(id)
    const beside = this.#guests().filter(({ tap, egress }) => tap !== before?.device.tap && sharesPort(before, egress))
    const [old, wanted] = [before, after].map((one) => [...(one === undefined ? [] : [one.rules]), ...beside])
    const change = changeOf(this.#rules().table, old ?? [], wanted ?? [])
    const note = (held: Attached | undefined): void => void (held === undefined ? this.#attached.delete(id) : this.#attached.set(id, held))
    note(after)
    try {
      if (change.trim() !== '') await this.#nft(change, step)
    } catch (error) {
      step.log.warn({ err: error }, 'the rules of the network are not as they were left, and are made anew')
      await this.#repair(step).catch((cause: unknown) => {
        note(before)
        throw cause
      })
    }
  }

  async #remove(id: string, step: Step): Promise<void> {
    // Named before: what follows may fail, and the next daemon finds the devices by their names.
    const leftover = [this.#tapOf(id), this.#ifbOf(id)].filter(isDevice)
    await this.#ip(deleteLines(leftover), step)
    if (this.#attached.has(id)) await this.#setGuest(id, undefined, step)
    if (this.#attached.size === 0) clearTimeout(this.#timer)
  }

  /** What was being changed when the last daemon died is not known. */
  async #shapeAnew(nics: readonly Nic[], step: Step): Promise<void> {
    const ifbs = nics.map(({ id }) => this.#ifbOf(id)).filter(isDevice)
    const held = nics.filter(({ bandwidth }) => bandwidth.uploadBps !== undefined)
    await this.#ip([...deleteLines(ifbs), ...held.flatMap(({ id }) => ifbLines(this.#ifbOf(id)))], step)
    if (nics.length === 0) return
    const taps = nics.flatMap(({ id }) => resetLines(this.#tapOf(id)))
    // There may be none to take away.
    await this.#run(['tc', '-force', '-batch', '-'], taps, step).catch(() => undefined)
    await this.#tc(
      nics.flatMap(({ id, bandwidth }) => shapeLines(this.#tapOf(id), this.#ifbOf(id), {}, bandwidth)),
      step,
    )
  }

  async #shape(id: string, { rates }: Attached, after: Rates, step: Step): Promise<void> {
    const [tap, ifb] = [this.#tapOf(id), this.#ifbOf(id)]
    if (after.uploadBps !== undefined && rates.uploadBps === undefined) await this.#ip(ifbLines(ifb), step)
    await this.#tc(shapeLines(tap, ifb, rates, after), step)
    if (after.uploadBps === undefined && rates.uploadBps !== undefined) {
      await this.#tc([`qdisc delete dev ${tap} ingress`], step)
      await this.#ip(deleteLines([ifb]), step)
    }
  }

  /** Throws `conflict` when the host knows another way to an address of ours. */
  #assertNoOverlap(): void {
    const { subnet4, subnet6, bridge } = this.#uses.settings
    const { ipv4, ipv6 } = readRoutes()
    const rival4 = ipv4.find((route) => route.device !== bridge && route.prefix > 0 && overlaps4(route, subnet4))
    const rival6 = ipv6.find((route) => route.device !== bridge && route.prefix > 0 && overlaps6(route, subnet6))
    const [mine, theirs, device, setting] =
      rival4 !== undefined
        ? [formatSubnet4(subnet4), formatSubnet4(rival4), rival4.device, 'DORMOUSE_SUBNET']
        : rival6 !== undefined
          ? [formatSubnet6(subnet6), formatSubnet6(rival6), rival6.device, 'DORMOUSE_SUBNET6']
          : []
    if (mine === undefined) return
    throw new AppError('conflict', `The subnet ${mine} of the instances overlaps with ${theirs}, which this host reaches by ${device}`, {
      hint: `Set ${setting} to one that is free, and start the daemon again`,
    })
  }

  /** The host hands packets on. Devices that listen to routers go on doing so: by itself a host that forwards does not (ip-sysctl, accept_ra). */
  #forward(): void {
    if (readText(FORWARD4).trim() !== '1') writeFileSync(FORWARD4, '1')
    // Clients on the loopback reach published ports; guests do not reach the loopback by it, that is closed by rule.
    writeFileSync(`/proc/sys/net/ipv4/conf/${this.#device.name}/route_localnet`, '1')
    if (!hasIpv6() || readText(FORWARD6).trim() === '1') return
    for (const name of devices()) {
      const file = `/proc/sys/net/ipv6/conf/${name}/accept_ra`
      if (readText(file).trim() === '1') writeFileSync(file, '2')
    }
    writeFileSync(FORWARD6, '1')
  }

  // Telling the kernel

  async #ip(lines: readonly string[], step: Step): Promise<void> {
    if (lines.length > 0) await this.#run(['ip', '-batch', '-'], lines, step)
  }

  async #tc(lines: readonly string[], step: Step): Promise<void> {
    if (lines.length > 0) await this.#run(['tc', '-batch', '-'], lines, step)
  }

  async #nft(text: string, step: Step): Promise<void> {
    await this.#run(['nft', '-f', '-'], [text], step)
  }

  /** Undefined when one of the tables is not there. */
  async #list(step: Step): Promise<ListedRules | undefined> {
    const { table } = this.#rules()
    // One at a time: the program knows one table only, when it is told to list two.
    const listings = (['bridge', 'inet'] as const).map((family) => this.#run(['nft', '-n', 'list', 'table', family, table], [], step))
    const text = await Promise.all(listings).then(
      (texts) => texts.join('\n'),
      () => undefined,
    )
    return text === undefined ? undefined : readListing(text)
  }

  async #run(argv: readonly [string, ...string[]], lines: readonly string[], step: Step): Promise<string> {
    this.#uses.onSpawn?.(argv[0])
    const { stdout } = await runCommand(argv, { step, input: `${lines.join('\n')}\n`, maxOutputBytes: 64 << 20 })
    return stdout
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work, work)
    this.#turn = done.catch(() => undefined)
    return done
  }

  #lookLater(): void {
    clearTimeout(this.#timer)
    if (this.#isClosed || this.#attached.size === 0) return
    this.#timer = setTimeout(() => {
      const step = { signal: AbortSignal.timeout(LOOK_LIMIT_MS), log: this.#uses.log }
      this.look(step)
        .catch((err: unknown) => this.#uses.log.error({ err }, 'the network of the instances could not be mended'))
        .finally(() => this.#lookLater())
    }, this.#uses.lookEveryMs ?? LOOK_EVERY_MS)
    this.#timer.unref()
  }
}

/** A port that a proxy has let go of may be another's by the time that this is known. */
const sharesPort = (one: Attached | undefined, other: GuestRules['egress']): boolean =>
  other?.proxyPort !== undefined && other.proxyPort === one?.rules.egress?.proxyPort

/** Waits for both, whatever becomes of the first: nothing may go on behind an undo. */
async function bothOf(...works: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(works)) if (outcome.status === 'rejected') throw outcome.reason
}

const notOnBridge = (): AppError =>
  new AppError('invalid_state', 'The instance is not on the bridge: it was started on another kind of network, or its TAP was removed', {
    hint: 'Stop it and start it again',
  })

const HINT = 'See: dormouse doctor'
const FORWARD4 = '/proc/sys/net/ipv4/ip_forward'
const FORWARD6 = '/proc/sys/net/ipv6/conf/all/forwarding'

/** What an undo may take, whatever became of the step that it undoes. */
const undoStep = ({ log }: Step): Step => ({ signal: AbortSignal.timeout(10_000), log })

const resetLines = (tap: string): string[] => [`qdisc delete dev ${tap} root`, `qdisc delete dev ${tap} ingress`]

const isDevice = (name: string): boolean => existsSync(`/sys/class/net/${name}`)

function devices(): string[] {
  try {
    return readdirSync('/sys/class/net')
  } catch {
    return []
  }
}

function masterOf(device: string): string | undefined {
  try {
    return basename(readlinkSync(`/sys/class/net/${device}/master`))
  } catch {
    return undefined
  }
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}
