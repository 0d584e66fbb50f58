import type { RouteId } from '../packages/api/src/endpoints.ts'
import { EXAMPLES } from '../packages/api/src/examples.ts'
import { Problem } from '../packages/api/src/problem.ts'
import { type Route, routes } from '../packages/api/src/routes.ts'
import { checkInput } from '../packages/daemon/src/http/check-input.ts'
import type { Exchange } from './api-examples-run.ts'

type Schema = NonNullable<Route['answer']>

/** Why what is shown is not what a daemon answers; undefined when it is, numbers and words of chance apart. */
export function misfitOf(shown: Exchange, real: Exchange): string | undefined {
  if (shown.request !== real.request) return `the request is now ${real.request}`
  if (JSON.stringify(shown.body) !== JSON.stringify(real.body)) return `the body is now ${JSON.stringify(real.body)}`
  if (shown.status !== real.status) return `the status is now ${real.status}`
  const route: Route = routes[real.route as RouteId]
  if (real.status >= 400)
    return faultOf(Problem, shown.answer) ?? faultOf(Problem, real.answer) ?? fieldsApart(Problem, shown.answer, real.answer, '')
  const { answer: schema } = route
  if (schema === undefined || route.stream === 'websocket') return undefined
  for (const { answer } of [shown, real]) {
    for (const one of route.stream === 'sse' ? (answer as unknown[]) : [answer]) {
      const wrong = faultOf(schema, one)
      if (wrong !== undefined) return `${wrong}: ${JSON.stringify(one)}`
    }
  }
  if (EXAMPLES.some((example) => example.route === real.route && example.isByChance)) return undefined
  return fieldsApart(route.stream === 'sse' ? ({ type: 'array', items: schema } as Schema) : schema, shown.answer, real.answer, '')
}

function faultOf(schema: Schema, answer: unknown): string | undefined {
  try {
    checkInput(schema, answer, 'The answer')
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

interface Shape {
  readonly properties?: Readonly<Record<string, Schema>>
  readonly items?: Schema
  readonly anyOf?: readonly Schema[]
}

/** A field that only one of them has. Of a list the first items are looked at; what a null stands for is not. */
function fieldsApart(schema: Schema, shown: unknown, real: unknown, where: string): string | undefined {
  const { properties, items, anyOf } = schema as Shape
  if (anyOf) return shown === null || real === null ? undefined : fieldsApart(anyOf[0] as Schema, shown, real, where)
  if (items) {
    const [[one], [other]] = [shown as unknown[], real as unknown[]]
    return one === undefined || other === undefined ? undefined : fieldsApart(items, one, other, `${where}[0]`)
  }
  if (!properties) return undefined
  for (const [name, inner] of Object.entries(properties)) {
    const [one, other] = [(shown as Record<string, unknown>)[name], (real as Record<string, unknown>)[name]]
    if ((one === undefined) !== (other === undefined)) return `the field ${where}.${name} is ${other === undefined ? 'gone' : 'new'}`
    if (one === undefined) continue
    const apart = fieldsApart(inner, one, other, `${where}.${name}`)
    if (apart !== undefined) return apart
  }
  return undefined
}
