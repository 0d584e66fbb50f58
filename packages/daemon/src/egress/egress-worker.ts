/**
 * The process of one instance's proxy. It begins with nothing but two sockets that others opened: the daemon's (3), by which it is told what to
 * do, and again whenever that changes, and the guest's (4), from which it takes nothing before. It reads no file of the daemon's, has no
 * argument and no environment, and writes no secret anywhere. It outlives the daemon: what it was told holds until it is told otherwise.
 */
import { BlockList, createServer, isIPv4, type Socket } from 'node:net'
import { rootCertificates } from 'node:tls'
import { isClosedAddress } from '../lib/closed-addresses.ts'
import { Mediator } from './mediator.ts'
import { OwnAddresses } from './own-addresses.ts'
import { CONTROL_FD, GUEST_FD, ORDER_MAX, type ProxyOrder } from './proxy-order.ts'

// Who hands a guest's connections on must not wait: as many as a mediator takes.
const BACKLOG = 1024

const own = new OwnAddresses()
let current: { readonly mediator: Mediator; readonly order: ProxyOrder } | undefined

// What would be printed of a mistake of ours may hold what it was made with.
process.on('uncaughtException', (error) => {
  process.stderr.write(`dormouse-egress: ended by a ${error.name}${'code' in error ? ` (${String(error.code)})` : ''}\n`)
  process.exit(1)
})

function take(order: ProxyOrder): void {
  const before = current
  const isSameTrust = JSON.stringify(before?.order.trusted) === JSON.stringify(order.trusted)
  const mediator = before !== undefined && isSameTrust ? before.mediator : mediatorOf(order)
  mediator.configure(order.mediation)
  current = { mediator, order }
  // Connections to hosts that were verified otherwise are not kept.
  if (mediator !== before?.mediator) before?.mediator[Symbol.dispose]()
}

const mediatorOf = ({ trusted }: ProxyOrder): Mediator =>
  new Mediator({ mayReach, ...(trusted.length > 0 && { trusted: [...rootCertificates, ...trusted] }) })

function mayReach(address: string): boolean {
  if (current === undefined || isClosedAddress(address)) return false
  const { closedSubnets, opensHost } = current.order
  if (isIn(closedSubnets, address)) return false
  return opensHost || !own.has(address)
}

function isIn(subnets: readonly string[], address: string): boolean {
  const family = isIPv4(address) ? 'ipv4' : 'ipv6'
  const list = new BlockList()
  for (const subnet of subnets) {
    const [base = '', prefix = ''] = subnet.split('/')
    if (isIPv4(base) === isIPv4(address)) list.addSubnet(base, Number(prefix), family)
  }
  return list.check(address, family)
}

/** One line, one answer. */
function serve(socket: Socket): void {
  let text = ''
  socket.setEncoding('utf8')
  socket.on('error', () => socket.destroy())
  socket.on('data', (chunk: string) => {
    text += chunk
    if (text.length > ORDER_MAX) {
      socket.destroy()
      return
    }
    const end = text.indexOf('\n')
    if (end < 0) return
    const line = text.slice(0, end)
    text = ''
    socket.end(`${answerTo(line)}\n`)
  })
}

function answerTo(line: string): string {
  try {
    take(JSON.parse(line) as ProxyOrder)
  } catch (error) {
    // Not its message: a parser's quotes what it has read.
    return `error ${error instanceof Error ? error.name : 'unknown'}`
  }
  if (!guests.listening) guests.listen({ fd: GUEST_FD, backlog: BACKLOG })
  return 'ok'
}

const guests = createServer({ allowHalfOpen: true }, (socket) => {
  const guest = current?.order.guestAddress
  if (current === undefined || (guest !== undefined && socket.remoteAddress !== guest)) socket.destroy()
  else current.mediator.accept(socket)
})
createServer({ allowHalfOpen: true }, serve).listen({ fd: CONTROL_FD })
