/** What a daemon with a bridge needs of its host. Nothing is changed: what is tried is tried on nothing. */
import { existsSync, readFileSync } from 'node:fs'
import type { Config } from '../config/config.ts'
import { readHostFacts } from '../host/host-facts.ts'
import { runCommand } from '../host/run-command.ts'
import { overlaps4, overlaps6, parseSubnet4, parseSubnet6 } from '../lib/subnet.ts'
import { readRoutes, uplinkOf } from '../network/host-network.ts'
import { USER_NET } from '../network/network.ts'
import type { Finding } from './doctor.ts'

export async function checkNetwork(config: Config): Promise<Finding[]> {
  const { dns, kind } = config.network
  const asked = dns.length > 0 ? dns.join(', ') : `the host's resolvers, through ${kind === 'user' ? USER_NET.dnsForwarder : 'the gateway'}`
  if (kind === 'user') return [{ what: 'network', state: 'good', says: `user-mode, no rights needed; guests ask ${asked}` }]
  const findings = [
    rights(),
    device(),
    carrier(),
    await tools(),
    subnets(config),
    forwarding(config),
    hairpin(config),
    await others(config),
  ].flat()
  const { bridge, subnet } = config.network
  return [{ what: 'network', state: 'good', says: `bridge ${bridge}, ${subnet}; guests ask ${asked}` }, ...findings]
}

function rights(): Finding[] {
  if (readHostFacts().isRoot) return []
  return [
    {
      what: 'bridge: rights',
      state: 'bad',
      says: 'a bridge is made by root alone',
      mend: 'Run the daemon as root, or set DORMOUSE_NETWORK=user',
    },
  ]
}

function device(): Finding[] {
  if (existsSync('/dev/net/tun')) return []
  return [{ what: 'bridge: TAP devices', state: 'bad', says: '/dev/net/tun is missing', mend: 'Load the kernel module: modprobe tun' }]
}

/** Of use beside KVM alone. */
function carrier(): Finding[] {
  if (!existsSync('/dev/kvm')) return []
  if (existsSync('/dev/vhost-net'))
    return [
      { what: 'bridge: vhost', state: 'good', says: "where guests run with KVM, the host's kernel carries their frames (/dev/vhost-net)" },
    ]
  return [
    {
      what: 'bridge: vhost',
      state: 'poor',
      says: '/dev/vhost-net is missing: QEMU carries every frame of guests by itself, which costs it a processor',
      mend: 'Load the kernel module and start the daemon again: modprobe vhost_net',
    },
  ]
}

async function tools(): Promise<Finding[]> {
  const missing: string[] = []
  for (const [program, argument, from] of [
    ['ip', '-V', 'iproute2'],
    ['tc', '-V', 'iproute2'],
    ['nft', '--version', 'nftables'],
  ] as const) {
    await runCommand([program, argument], { step: { signal: AbortSignal.timeout(5000) } }).catch(() => missing.push(from))
  }
  if (missing.length > 0) {
    const names = [...new Set(missing)].join(' ')
    return [{ what: 'bridge: tools', state: 'bad', says: `not there: ${names}`, mend: `apt-get install --no-install-recommends ${names}` }]
  }
  if (!readHostFacts().isRoot) return []
  // Checked and not applied.
  const rules =
    'table bridge dormouse_doctor { chain c { type filter hook prerouting priority 0; }; }\ntable inet dormouse_doctor { chain c { type nat hook output priority 0; fib daddr type local accept; }; }\n'
  try {
    await runCommand(['nft', '-c', '-f', '-'], { step: { signal: AbortSignal.timeout(5000) }, input: rules })
    return []
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return [
      {
        what: 'bridge: nftables',
        state: 'bad',
        says: `the kernel takes no rules: ${why}`,
        mend: 'Load the kernel modules: modprobe -a nf_tables nft_fib_inet nft_nat nf_tables_bridge',
      },
    ]
  }
}

function subnets({ network }: Config): Finding[] {
  const [subnet4, subnet6] = [parseSubnet4(network.subnet), parseSubnet6(network.subnet6)]
  const { ipv4, ipv6 } = readRoutes()
  const isRival = ({ device, prefix }: { device: string; prefix: number }): boolean => device !== network.bridge && prefix > 0
  const rival =
    (subnet4 && ipv4.find((route) => isRival(route) && overlaps4(route, subnet4))) ??
    (subnet6 && ipv6.find((route) => isRival(route) && overlaps6(route, subnet6)))
  if (rival === undefined) return []
  return [
    {
      what: 'bridge: subnet',
      state: 'bad',
      says: `${network.subnet} or ${network.subnet6} overlaps with what the host reaches by ${rival.device}`,
      mend: 'Set DORMOUSE_SUBNET or DORMOUSE_SUBNET6 to one that is free',
    },
  ]
}

function forwarding({ network }: Config): Finding[] {
  const findings: Finding[] = []
  const uplink = network.uplink ?? uplinkOf(readRoutes())
  if (uplink === undefined || !existsSync(`/sys/class/net/${uplink}`)) {
    findings.push({
      what: 'bridge: uplink',
      state: 'poor',
      says:
        uplink === undefined ? 'the host has no default route: guests reach what it reaches, and no more' : `there is no device ${uplink}`,
      mend: 'Give the host a default route, or name the device in DORMOUSE_UPLINK',
    })
  }
  if (isOff('/proc/sys/net/ipv4/ip_forward')) {
    findings.push({ what: 'bridge: ip_forward', state: 'good', says: 'off; the daemon turns it on when it starts' })
  }
  return findings
}

const BRIDGE_CALLS = '/proc/sys/net/bridge/bridge-nf-call-iptables'

/** With it the kernel takes what goes from the bridge back to the bridge for one port's frame to another, and these are isolated. */
function hairpin({ network }: Config): Finding[] {
  if (!network.allowHostAccess || !existsSync(BRIDGE_CALLS) || isOff(BRIDGE_CALLS)) return []
  return [
    {
      what: 'bridge: back to a guest',
      state: 'poor',
      says: 'guests do not reach ports that guests publish: packets of bridges go through iptables here (net.bridge.bridge-nf-call-iptables)',
      mend: 'sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0, unless Docker or Kubernetes needs them',
    },
  ]
}

const isOff = (file: string): boolean => {
  try {
    return readFileSync(file, 'latin1').trim() === '0'
  } catch {
    return false
  }
}

/** What others drop by default they drop after us too: a packet has to pass every table. */
async function others({ network }: Config): Promise<Finding[]> {
  const step = { signal: AbortSignal.timeout(5000) }
  const { stdout } = await runCommand(['nft', '-t', 'list', 'chains'], { step, maxOutputBytes: 16 << 20 }).catch(() => ({ stdout: '' }))
  const found = droppingTables(stdout).filter((table) => !table.endsWith(` ${network.bridge}`))
  if (found.length === 0) return []
  return [
    {
      what: 'bridge: other rules',
      state: 'poor',
      says: `what is forwarded is dropped by default in: ${found.join(', ')}`,
      mend: `Let it through there, for Docker: iptables -I DOCKER-USER -i ${network.bridge} -j ACCEPT; iptables -I DOCKER-USER -o ${network.bridge} -j ACCEPT`,
    },
  ]
}

/** Tables with a forward chain that drops what no rule lets through, in `nft list chains`. Pure. */
export function droppingTables(listing: string): string[] {
  let table = ''
  return listing.split('\n').flatMap((line) => {
    table = /^table (\S+ \S+)/.exec(line)?.[1] ?? table
    return /hook forward .*policy drop/.test(line) && !table.startsWith('bridge') ? [table] : []
  })
}
