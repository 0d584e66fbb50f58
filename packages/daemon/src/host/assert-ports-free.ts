import { AppError } from '@dormouse/api/errors.ts'
import type { HostPort } from './host-ports.ts'
import { tryHostPort } from './host-ports.ts'

/**
 * Throws `port_in_use` for the first port that cannot be had now, before anything has been started for it. Someone may still take
 * it between this look and the real binding, which then says the same.
 */
export async function assertPortsFree(ports: readonly HostPort[]): Promise<void> {
  for (const port of ports) {
    try {
      await tryHostPort(port)
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code
      const where = `Host port ${port.hostPort}/${port.protocol} on ${port.hostIp}`
      if (code === 'EADDRINUSE') throw new AppError('port_in_use', `${where} is taken`, { hint: 'Publish another host port', cause })
      if (code === 'EADDRNOTAVAIL')
        throw new AppError('invalid_request', `${where} cannot be published: the host has no such address`, { cause })
      if (code === 'EACCES')
        throw new AppError('invalid_request', `${where} is for root alone`, { hint: 'Publish a port from 1024 on', cause })
      throw cause
    }
  }
}
