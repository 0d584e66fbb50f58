/** Which addresses are the host's own, as its kernel routes: local routes too, which no interface shows. */
import { readFileSync } from 'node:fs'
import { BlockList, isIPv4 } from 'node:net'

// An address that came a moment ago counts soon, and a stream of connections does not read the same again and again.
const KEPT_MS = 1000

export class OwnAddresses {
  #read: { readonly ipv4: BlockList; readonly ipv6: BlockList; readonly atMs: number } | undefined

  /** `address` is one. Throws when the kernel does not tell. */
  has(address: string): boolean {
    const nowMs = performance.now()
    if (this.#read === undefined || nowMs - this.#read.atMs > KEPT_MS) {
      const lists = ownAddressesOf({ trie: readFileSync('/proc/net/fib_trie', 'latin1'), routes6: readIfThere('/proc/net/ipv6_route') })
      this.#read = { ...lists, atMs: nowMs }
    }
    return isIPv4(address) ? this.#read.ipv4.check(address, 'ipv4') : this.#read.ipv6.check(address, 'ipv6')
  }
}

/** From the kernel's own tables. Pure. */
export function ownAddressesOf({ trie, routes6 }: { readonly trie: string; readonly routes6: string }): {
  ipv4: BlockList
  ipv6: BlockList
} {
  const [ipv4, ipv6] = [new BlockList(), new BlockList()]
  let leaf = ''
  for (const line of trie.split('\n')) {
    const address = /\|-- (\d+\.\d+\.\d+\.\d+)$/.exec(line)?.[1]
    if (address !== undefined) leaf = address
    // `/32 host LOCAL`: also of a prefix that is delivered here as a whole.
    const prefix = /^ *\/(\d+) \S+ (?:LOCAL|BROADCAST)$/.exec(line)?.[1]
    if (prefix !== undefined && leaf !== '') ipv4.addSubnet(leaf, Number(prefix), 'ipv4')
  }
  for (const line of routes6.split('\n')) {
    const [to = '', prefix = '', , , , , , , flags = ''] = line.trim().split(/ +/)
    if (!/^[0-9a-f]{32}$/.test(to) || (Number.parseInt(flags, 16) & LOCAL) === 0) continue
    ipv6.addSubnet(to.match(/.{4}/g)?.join(':') ?? '', Number.parseInt(prefix, 16), 'ipv6')
  }
  return { ipv4, ipv6 }
}

/** RTF_LOCAL and RTF_ANYCAST (linux/ipv6_route.h). */
const LOCAL = 0x80000000 | 0x00100000

function readIfThere(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    // No IPv6.
    return ''
  }
}
