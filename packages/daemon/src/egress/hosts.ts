/** Which hosts a credential is for: `api.example.com`, or `*.example.com` for all that lie below it. Pure. */
import { isIP } from 'node:net'
import { domainToASCII } from 'node:url'

// RFC 1035, 2.3.4, without the dot at the end; an underscore is in no host's name but in some that answer.
const LABEL = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/
const LONGEST = 253

/** As it is compared: small letters, its IDNA form. Undefined when it is neither a name nor a pattern; an address is none. */
export function hostPatternOf(text: string): string | undefined {
  const isWild = text.startsWith('*.')
  const name = hostNameOf(isWild ? text.slice(2) : text)
  return name === undefined ? undefined : isWild ? `*.${name}` : name
}

/** The one spelling of a host's name. Undefined for an address, and for what is no name. */
export function hostNameOf(text: string): string | undefined {
  // What domainToASCII would decode or cut off is no name.
  if (text === '' || /[%/?#@:[\]\\\s]/.test(text)) return undefined
  const name = domainToASCII(text).replace(/\.$/, '')
  if (name.length > LONGEST || isIP(name) !== 0) return undefined
  return name.split('.').every((label) => LABEL.test(label)) ? name : undefined
}

/** Both as `hostPatternOf` and `hostNameOf` give them. A pattern is not for the name that it stands on. */
export const matchesHost = (pattern: string, name: string): boolean =>
  pattern.startsWith('*.') ? name.endsWith(pattern.slice(1)) && name.length > pattern.length - 1 : pattern === name

/** Is there a host that both are for? */
export function haveHostInCommon(a: string, b: string): boolean {
  if (!a.startsWith('*.')) return matchesHost(b, a)
  if (!b.startsWith('*.')) return matchesHost(a, b)
  return a.endsWith(b.slice(1)) || b.endsWith(a.slice(1))
}
