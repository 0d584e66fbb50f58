/** Query strings both ways. Objects travel as `tags[key]=value`; everything else is text that the schema gives a type. */
import type { TSchema } from 'typebox'

type Fields = Record<string, unknown>

/** `{ state: 'Running', tags: { team: 'a b' } }` → `?state=Running&tags%5Bteam%5D=a%20b`; empty when there is nothing to say. */
export function encodeQuery(query: Readonly<Fields> | undefined): string {
  const parts: string[] = []
  const add = (key: string, value: unknown) => parts.push(`${encodeURIComponent(key)}=${encodeURIComponent(String(value))}`)
  for (const [key, value] of Object.entries(query ?? {})) {
    if (value === undefined) continue
    if (typeof value === 'object' && value !== null) {
      for (const [inner, text] of Object.entries(value)) if (text !== undefined) add(`${key}[${inner}]`, text)
    } else add(key, value)
  }
  return parts.length === 0 ? '' : `?${parts.join('&')}`
}

const DEEP = /^([^[\]]+)\[([^\]]*)\]$/

/** The texts of a query string. A key that comes twice becomes an array, which no schema of ours takes: it is refused, not guessed. */
export function decodeQuery(search: string): Fields {
  const fields: Fields = Object.create(null)
  const put = (into: Fields, key: string, value: string) => {
    const before = into[key]
    into[key] = before === undefined ? value : Array.isArray(before) ? [...before, value] : [before, value]
  }
  for (const [key, value] of new URLSearchParams(search)) {
    const deep = DEEP.exec(key)
    if (!deep) {
      put(fields, key, value)
      continue
    }
    const [, outer = '', inner = ''] = deep
    const known = fields[outer]
    if (known === undefined) fields[outer] = Object.create(null)
    const into = fields[outer]
    if (typeof into === 'object' && into !== null && !Array.isArray(into)) put(into as Fields, inner, value)
    else put(fields, outer, value)
  }
  return fields
}

/** Gives texts the types that `schema` names and fills in its defaults. What does not read as its type stays text, for the check to name. */
export function typedQuery(fields: Readonly<Fields>, schema: TSchema): Fields {
  const typed: Fields = { ...fields }
  const properties = (schema as { properties?: Record<string, { type?: string; default?: unknown }> }).properties ?? {}
  for (const [key, property] of Object.entries(properties)) {
    const value = typed[key]
    if (value === undefined) {
      if (property.default !== undefined) typed[key] = property.default
    } else if (typeof value === 'string') typed[key] = typedText(value, property.type)
  }
  return typed
}

function typedText(text: string, type: string | undefined): unknown {
  if (type === 'boolean') return text === 'true' || text === '1' ? true : text === 'false' || text === '0' ? false : text
  if (type === 'integer' || type === 'number') return /^-?\d{1,15}(\.\d+)?$/.test(text) ? Number(text) : text
  return text
}
