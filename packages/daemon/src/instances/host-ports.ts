import { isIPv6 } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import { tryHostPort } from '../host/host-ports.ts'
import type { PortForward } from '../hypervisors/hypervisor.ts'

// With half of all ports given away, one try in a thousand chooses a given one ten times.
const CHOICES = 10

/**
 * The port with its host side chosen where 0 was asked for: one that is free on the host and that `isGiven` does not know, as that of
 * an instance that is stopped. Tries the port by opening it for a moment: a program that has it is told of before anything is made.
 * The VMM opens it for good, and says so again should someone have come first.
 */
export async function probeHostPort(port: PortForward, isGiven: (chosen: PortForward) => boolean = () => false): Promise<PortForward> {
  const isSix = isIPv6(port.hostIp)
  const name = `${isSix ? `[${port.hostIp}]` : port.hostIp}:${port.hostPort}/${port.protocol}`
  for (let choice = 0; choice < CHOICES; choice++) {
    const chosen = { ...port, hostPort: await tryHostPort(port).catch((cause) => Promise.reject(refusalOf(port, name, cause))) }
    if (port.hostPort !== 0 || !isGiven(chosen)) return chosen
  }
  throw new AppError('port_in_use', `No free host port was found on ${port.hostIp}: instances have most of them`, {
    hint: 'Name a host port, or delete instances that are not needed',
  })
}

function refusalOf(port: PortForward, name: string, cause: NodeJS.ErrnoException): AppError {
  const { code } = cause
  if (code === 'EADDRINUSE') return new AppError('port_in_use', `The host port ${name} is used by another program`, { cause })
  if (code === 'EADDRNOTAVAIL') return new AppError('invalid_request', `${port.hostIp} is no address of this host`, { cause })
  if (code === 'EACCES') return new AppError('invalid_request', `The host port ${name} may not be opened by this user`, { cause })
  return new AppError('invalid_request', `The host port ${name} cannot be opened`, { cause })
}
