/**
 * What the kernel is told to let through: a pure function from the bridge and its guests to text for `nft -f -`. All of it lies in two
 * tables of our own, which are replaced at once; nobody else's rules are touched.
 *
 *   bridge table   the frames of a guest, before the bridge has learned anything of them: its own card and addresses, or dropped
 *   inet table     where packets may go: out, not to the host, not to each other; published ports; addresses towards the outside
 */
import { CLOSED4, CLOSED6 } from '../lib/closed-addresses.ts'
import { formatSubnet4, formatSubnet6, linkLocalOf, type Subnet4, type Subnet6, toNumber6 } from '../lib/subnet.ts'

export interface BridgeRules {
  /** Of both tables. */
  readonly table: string
  readonly bridge: string
  /** What the name of every TAP on the bridge begins with, and no other device's. */
  readonly tapPrefix: string
  readonly subnet4: Subnet4
  readonly subnet6: Subnet6
  readonly gateway4: string
  readonly gateway6: string
  /** The only device that guests may leave by; undefined: any. */
  readonly uplink: string | undefined
  /** Where a question to the gateway's port 53 goes; undefined: nowhere. */
  readonly resolver: string | undefined
  /** Guests reach the host at its own addresses, and each other's published ports by them. */
  readonly opensHost: boolean
}

export interface GuestRules {
  readonly tap: string
  readonly mac: string
  readonly ipv4: string
  readonly ipv6: string
  readonly ports: readonly {
    readonly protocol: 'tcp' | 'udp'
    readonly hostIp: string
    readonly hostPort: number
    readonly guestPort: number
  }[]
  /** What it opens by TCP goes through its proxy; absent: it goes by itself. */
  readonly egress?: {
    /** What it may not open by itself: anything, or web servers at their usual ports. Names it may ask for as ever. */
    readonly mode: 'all' | 'http_https_only'
    /** Of its proxy, which listens at the IPv4 gateway; undefined: it has none now. */
    readonly proxyPort?: number | undefined
  }
}

/** Where each guest finds its own proxy, at the IPv4 gateway: the same for all, so that a fork finds its own. */
export const PROXY_PORT = 3128

/** Elements by the set or map that they are in, as nft writes them. */
export type Elements = ReadonlyMap<string, readonly string[]>

/** In which table each set is. */
const SETS = {
  nics: 'bridge',
  addresses4: 'bridge',
  addresses6: 'bridge',
  senders4: 'bridge',
  targets6: 'bridge',
  ports4: 'inet',
  ports4_at: 'inet',
  ports6: 'inet',
  ports6_at: 'inet',
  proxies: 'inet',
  proxy_ports: 'inet',
  mediated4: 'inet',
  mediated6: 'inet',
  mediated_web4: 'inet',
  mediated_web6: 'inet',
} as const
type SetName = keyof typeof SETS

/** All of it, in place of what there was. */
export function rulesetOf(rules: BridgeRules, guests: readonly GuestRules[]): string {
  const { table } = rules
  return [
    // The first makes sure that there is one to delete.
    ...(['bridge', 'inet'] as const).flatMap((family) => [`table ${family} ${table}`, `delete table ${family} ${table}`]),
    ...bridgeTable(rules),
    ...inetTable(rules),
    ...additionOf(table, elementsOf(guests)),
    '',
  ].join('\n')
}

/** What changes between two sets of guests, elements that go first: a port may move from one guest to another. */
export function changeOf(table: string, before: readonly GuestRules[], after: readonly GuestRules[]): string {
  const [old, wanted] = [elementsOf(before), elementsOf(after)]
  const gone = difference(old, wanted)
  return [...linesOf('delete', table, gone), ...additionOf(table, difference(wanted, old)), ''].join('\n')
}

/** Every set's elements, spelt as `nft -n list` spells them. */
export function elementsOf(guests: readonly GuestRules[]): Elements {
  const all = new Map<SetName, string[]>(Object.keys(SETS).map((name) => [name as SetName, []]))
  const add = (name: SetName, element: string): void => void all.get(name)?.push(element)
  const proxyPorts = new Set<number>()
  for (const { tap, mac, ipv4, ipv6, ports, egress } of guests) {
    const name = `"${tap}"`
    const own6 = [ipv6, linkLocalOf(mac)]
    add('nics', `${name} . ${mac}`)
    add('addresses4', `${name} . ${ipv4}`)
    add('senders4', `${name} . ${mac} . ${ipv4}`)
    for (const address of own6) {
      add('addresses6', `${name} . ${address}`)
      add('targets6', `${name} . 0x${toNumber6(address).toString(16)}`)
    }
    for (const { protocol, hostIp, hostPort, guestPort } of ports) {
      const is6 = hostIp.includes(':')
      const family = is6 ? 'ports6' : 'ports4'
      const to = `${is6 ? ipv6 : ipv4} . ${guestPort}`
      if (hostIp === '0.0.0.0' || hostIp === '::') add(family, `${PROTOCOLS[protocol]} . ${hostPort} : ${to}`)
      else add(`${family}_at`, `${hostIp} . ${PROTOCOLS[protocol]} . ${hostPort} : ${to}`)
    }
    if (egress === undefined) continue
    if (egress.proxyPort !== undefined) {
      add('proxies', `${ipv4} : ${egress.proxyPort}`)
      // Of two guests while one of them is being led away; in the kernel it is there once.
      if (!proxyPorts.has(egress.proxyPort)) add('proxy_ports', `${egress.proxyPort}`)
      proxyPorts.add(egress.proxyPort)
    }
    const [set4, set6] = egress.mode === 'all' ? (['mediated4', 'mediated6'] as const) : (['mediated_web4', 'mediated_web6'] as const)
    add(set4, ipv4)
    for (const address of own6) add(set6, address)
  }
  return all
}

/** As `nft -n` prints them. */
const PROTOCOLS = { tcp: 6, udp: 17 } as const

function difference(of: Elements, without: Elements): Elements {
  return new Map(
    [...of].map(([name, elements]) => {
      const known = new Set(without.get(name))
      return [name, elements.filter((element) => !known.has(element))]
    }),
  )
}

const additionOf = (table: string, elements: Elements): string[] => linesOf('add', table, elements)

const linesOf = (verb: 'add' | 'delete', table: string, elements: Elements): string[] =>
  [...elements].flatMap(([name, list]) =>
    list.length === 0 ? [] : [`${verb} element ${SETS[name as SetName]} ${table} ${name} { ${list.join(', ')} }`],
  )

function bridgeTable({ table, tapPrefix }: BridgeRules): string[] {
  return [
    `table bridge ${table} {`,
    'set nics { typeof meta iifname . ether saddr; }',
    'set addresses4 { typeof meta iifname . ip saddr; }',
    'set addresses6 { typeof meta iifname . ip6 saddr; }',
    'set senders4 { typeof meta iifname . arp saddr ether . arp saddr ip; }',
    // Whose address an advertisement is about (RFC 4861, 4.4): nft has no name for it yet.
    'set targets6 { typeof meta iifname . @th,64,128; }',
    'chain from_guest {',
    // Before the bridge learns who is where.
    'type filter hook prerouting priority -300; policy accept;',
    `meta iifname != "${tapPrefix}*" accept`,
    'meta iifname . ether saddr != @nics drop',
    'ether type arp meta iifname . arp saddr ether . arp saddr ip @senders4 accept',
    'ether type ip meta iifname . ip saddr @addresses4 accept',
    // A guest is no router.
    'icmpv6 type { nd-router-advert, nd-redirect } drop',
    'icmpv6 type nd-neighbor-advert meta iifname . @th,64,128 != @targets6 drop',
    'ether type ip6 meta iifname . ip6 saddr @addresses6 accept',
    // Before it has an address: is it someone else's, and which groups does it listen to.
    'ip6 saddr :: icmpv6 type { nd-neighbor-solicit, 131, 143 } accept',
    'drop',
    '}',
    'chain between_guests {',
    'type filter hook forward priority -200; policy accept;',
    // Ports that are isolated do that already; a port that someone joined by hand is not.
    `meta iifname "${tapPrefix}*" meta oifname "${tapPrefix}*" drop`,
    '}',
    '}',
  ]
}

function inetTable(rules: BridgeRules): string[] {
  const { table, bridge, gateway4, gateway6, uplink, resolver, opensHost } = rules
  const [net4, net6] = [formatSubnet4(rules.subnet4), formatSubnet6(rules.subnet6)]
  const dns = resolver === undefined ? [] : dnsRules(rules, resolver)
  const toPorts = [
    'fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @ports4_at',
    'fib daddr type local dnat ip to meta l4proto . th dport map @ports4',
    // The kernel takes nothing from ::1 to another host.
    'ip6 daddr != ::1 fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at',
    'ip6 daddr != ::1 fib daddr type local dnat ip6 to meta l4proto . th dport map @ports6',
  ]
  return [
    `table inet ${table} {`,
    'map ports4 { typeof meta l4proto . th dport : ip daddr . th dport; }',
    'map ports4_at { typeof ip daddr . meta l4proto . th dport : ip daddr . th dport; }',
    'map ports6 { typeof meta l4proto . th dport : ip6 daddr . th dport; }',
    'map ports6_at { typeof ip6 daddr . meta l4proto . th dport : ip6 daddr . th dport; }',
    'map proxies { typeof ip saddr : tcp dport; }',
    'set proxy_ports { typeof tcp dport; }',
    'set mediated4 { typeof ip saddr; }',
    'set mediated6 { typeof ip6 saddr; }',
    'set mediated_web4 { typeof ip saddr; }',
    'set mediated_web6 { typeof ip6 saddr; }',
    'chain direct {',
    // What a guest opens itself. Told at once: a program that knows no proxy should fail, not hang.
    `meta l4proto tcp ct original ip daddr ${gateway4} ct original proto-dst 53 return`,
    `meta l4proto tcp ct original ip6 daddr ${gateway6} ct original proto-dst 53 return`,
    'reject with tcp reset',
    '}',
    'chain closed {',
    'type filter hook prerouting priority -150; policy accept;',
    `iifname "${bridge}" ip daddr { ${CLOSED4.join(', ')} } drop`,
    `iifname "${bridge}" ip6 daddr { ${CLOSED6.join(', ')} } drop`,
    // No one but the guests has their addresses.
    `iifname != { "${bridge}", "lo" } ip saddr ${net4} drop`,
    `iifname != { "${bridge}", "lo" } ip6 saddr ${net6} drop`,
    '}',
    'chain to_ports {',
    'type nat hook prerouting priority -100; policy accept;',
    ...dns,
    `iifname "${bridge}" ip daddr ${gateway4} tcp dport ${PROXY_PORT} dnat ip to ${gateway4} : ip saddr map @proxies`,
    ...(opensHost ? [] : [`iifname "${bridge}" accept`]),
    ...toPorts,
    '}',
    'chain own_to_ports {',
    'type nat hook output priority -100; policy accept;',
    ...toPorts,
    '}',
    'chain outwards {',
    'type nat hook postrouting priority 100; policy accept;',
    // A client on the loopback, or one that is a guest too, is answered by way of the gateway.
    `oifname "${bridge}" ct status dnat ip saddr { 127.0.0.0/8, ${net4} } masquerade`,
    `oifname "${bridge}" ct status dnat ip6 saddr ${net6} masquerade`,
    `oifname != "${bridge}" ip saddr ${net4} masquerade`,
    `oifname != "${bridge}" ip6 saddr ${net6} masquerade`,
    '}',
    'chain to_host {',
    'type filter hook input priority 0; policy accept;',
    `iifname != "${bridge}" accept`,
    'ct state established,related accept',
    `ip daddr ${gateway4} icmp type echo-request accept`,
    `ip6 daddr ${gateway6} icmpv6 type echo-request accept`,
    'icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept',
    ...(resolver === undefined ? [] : ['ct status dnat meta l4proto { tcp, udp } th dport 53 accept']),
    `meta l4proto tcp ct status dnat ct original ip daddr ${gateway4} ct original proto-dst ${PROXY_PORT} accept`,
    // A proxy speaks for one guest, and no other reaches it.
    `ip daddr ${gateway4} tcp dport @proxy_ports reject with tcp reset`,
    ...directRules(bridge),
    opensHost ? 'accept' : 'drop',
    '}',
    'chain through {',
    'type filter hook forward priority 0; policy accept;',
    ...directRules(bridge),
    ...(opensHost ? [`iifname "${bridge}" oifname "${bridge}" ct status dnat accept`] : []),
    `iifname "${bridge}" oifname "${bridge}" drop`,
    ...(uplink === undefined ? [] : [`iifname "${bridge}" oifname != "${uplink}" drop`]),
    `iifname "${bridge}" accept`,
    `oifname "${bridge}" ct state established,related accept`,
    `oifname "${bridge}" ct status dnat accept`,
    `oifname "${bridge}" drop`,
    '}',
    '}',
  ]
}

/** Connections that others have opened to a guest are answered as ever. */
function directRules(bridge: string): string[] {
  const own = `iifname "${bridge}" meta l4proto tcp ct direction original`
  return ['ip', 'ip6'].flatMap((family) => {
    const version = family === 'ip' ? 4 : 6
    return [
      `${own} ${family} saddr @mediated${version} jump direct`,
      // As it was asked for, whatever a published port makes of it. One by one: of a set of these nft 1.0 makes something else.
      ...[80, 443].map((port) => `${own} ${family} saddr @mediated_web${version} ct original proto-dst ${port} jump direct`),
    ]
  })
}

/** The resolver may change while guests sleep; what they are told, the gateway, does not. */
function dnsRules({ bridge, gateway4, gateway6 }: BridgeRules, resolver: string): string[] {
  const is6 = resolver.includes(':')
  const asked = is6 ? `ip6 daddr ${gateway6}` : `ip daddr ${gateway4}`
  return [`iifname "${bridge}" ${asked} meta l4proto { tcp, udp } th dport 53 dnat ${is6 ? `ip6 to ${resolver}` : `ip to ${resolver}`}`]
}

/** What `nft -n list table` says, as what is fixed and what changes with the guests. */
export interface ListedRules {
  /** All but the elements. */
  readonly fixed: string
  readonly elements: Elements
}

export function readListing(text: string): ListedRules {
  const elements = new Map<string, string[]>()
  let set = ''
  const fixed: string[] = []
  let open: string | undefined
  for (const line of text.split('\n')) {
    const trimmed = line.trim()
    const begun = /^(?:set|map) (\S+) \{$/.exec(trimmed)?.[1]
    if (begun !== undefined) set = begun
    const listed = /^elements = \{(.*)$/.exec(trimmed)?.[1]
    if (listed !== undefined) open = ''
    if (open === undefined) {
      if (trimmed !== '') fixed.push(trimmed)
      continue
    }
    open += listed ?? ` ${trimmed}`
    if (!open.includes('}')) continue
    elements.set(
      set,
      open
        .replace('}', '')
        .split(',')
        .map((element) => element.trim())
        .filter((element) => element !== ''),
    )
    open = undefined
  }
  return { fixed: fixed.join('\n'), elements }
}

/** Whether both have the same elements, in whatever order. */
export function sameElements(a: Elements, b: Elements): boolean {
  return Object.keys(SETS).every((name) => {
    const [one, other] = [a.get(name) ?? [], b.get(name) ?? []].map((list) => [...list].sort().join())
    return one === other
  })
}
