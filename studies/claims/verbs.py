"""Portuguese verbs of the three regular conjugations, and forms made of them by rule."""

import dataclasses
import pathlib
import random
from collections.abc import Sequence

PERSONS = ('eu', 'tu', 'ele', 'nós', 'vós', 'eles')

# When a sentence takes place -> the tense that goes with it -> the endings of each conjugation.
TIMES = {'hoje': 'present', 'ontem': 'past', 'antes': 'imperfect', 'amanhã': 'future'}
ENDINGS = {
    'ar': {
        'present': ('o', 'as', 'a', 'amos', 'ais', 'am'),
        'past': ('ei', 'aste', 'ou', 'amos', 'astes', 'aram'),
        'imperfect': ('ava', 'avas', 'ava', 'ávamos', 'áveis', 'avam'),
        'future': ('arei', 'arás', 'ará', 'aremos', 'areis', 'arão'),
    },
    'er': {
        'present': ('o', 'es', 'e', 'emos', 'eis', 'em'),
        'past': ('i', 'este', 'eu', 'emos', 'estes', 'eram'),
        'imperfect': ('ia', 'ias', 'ia', 'íamos', 'íeis', 'iam'),
        'future': ('erei', 'erás', 'erá', 'eremos', 'ereis', 'erão'),
    },
    'ir': {
        'present': ('o', 'es', 'e', 'imos', 'is', 'em'),
        'past': ('i', 'iste', 'iu', 'imos', 'istes', 'iram'),
        'imperfect': ('ia', 'ias', 'ia', 'íamos', 'íeis', 'iam'),
        'future': ('irei', 'irás', 'irá', 'iremos', 'ireis', 'irão'),
    },
}
CELLS = tuple((time, person) for time in TIMES for person in PERSONS)

# Regular in all of these tenses, in sound and spelling.
REGULAR = (
    'abraçar aceitar achar acordar admirar ajudar alugar amar andar apertar apoiar apontar arrumar '
    'assinar assustar atirar aumentar avisar baixar beijar botar brilhar cansar cantar casar cavar '
    'chamar chorar cobrar colar comprar consultar contar cortar costurar cozinhar criar cuidar '
    'curar dançar deixar desenhar durar empurrar encontrar ensinar entrar escapar escutar esperar '
    'estudar evitar falar faltar fechar formar fumar ganhar gastar girar gostar gritar guardar '
    'herdar imitar juntar lavar lembrar levar limpar lutar mandar marcar matar montar morar '
    'mostrar mudar nadar notar olhar ordenar parar passar pegar pensar perguntar pesar pintar '
    'plantar precisar puxar quebrar rasgar respirar roubar saltar salvar secar soltar sonhar '
    'tentar tirar tomar trabalhar usar viajar virar visitar voltar '
    'aprender atender bater beber comer correr cometer conceder defender depender dever encher '
    'entender esconder meter morder ofender prender pretender prometer receber render responder '
    'sofrer surpreender temer varrer vender viver '
    'abrir admitir assistir confundir decidir definir demitir desistir discutir dividir existir '
    'garantir insistir invadir omitir partir permitir residir resistir transmitir unir'
).split()

# Spelled otherwise before some endings (c, ç and g before e): they are no members of the rule.
_SPELLED_OTHERWISE = ('car', 'çar', 'gar', 'cer', 'ger', 'gir', 'guir', 'ear', 'iar')

_ONSETS = (
    'b',
    'bl',
    'd',
    'dr',
    'f',
    'fl',
    'gr',
    'l',
    'm',
    'n',
    'p',
    'pr',
    'r',
    's',
    't',
    'tr',
    'v',
)
_VOWELS = ('a', 'e', 'i', 'o', 'u')
_CODAS = ('b', 'd', 'f', 'l', 'm', 'n', 'p', 'r', 's', 't', 'v', 'nt', 'rt', 'lm', 'mp')


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb, and the endings of its forms.

    Attributes:
      infinitive: of the verb.
      endings: for each of CELLS.
    """

    infinitive: str
    endings: tuple[str, ...]

    @property
    def stem(self) -> str:
        return self.infinitive[:-2]

    def form(self, cell: int) -> str:
        return self.stem + self.endings[cell]

    def sentence(self, cell: int) -> tuple[str, str]:
        """Returns the beginning of a sentence, and the form that it ends with."""
        time, person = CELLS[cell]
        return f'{self.infinitive}: {time} {person}', f' {self.form(cell)}.'


def conjugate(infinitive: str) -> Verb:
    """Returns a regular verb of the conjugation that its ending names."""
    of_tense = ENDINGS[infinitive[-2:]]
    endings = [of_tense[TIMES[time]][PERSONS.index(person)] for time, person in CELLS]
    return Verb(infinitive, tuple(endings))


def permute_endings(verb: Verb, rng: random.Random) -> Verb:
    """Returns the verb with its endings dealt to other cells, so that no rule gives them."""
    return dataclasses.replace(verb, endings=tuple(rng.sample(verb.endings, len(verb.endings))))


def regular_verbs(attested: str = '') -> list[Verb]:
    """Returns the verbs of REGULAR; of a file of forms, one a line, those that all stand there."""
    verbs = [
        conjugate(infinitive)
        for infinitive in REGULAR
        if not infinitive.endswith(_SPELLED_OTHERWISE)
    ]
    if not attested:
        return verbs
    forms = set(pathlib.Path(attested).read_text(encoding='utf-8').split('\n'))
    return [verb for verb in verbs if all(verb.form(cell) in forms for cell in range(len(CELLS)))]


def invented_verbs(count: int, seed: int, known: Sequence[Verb]) -> list[Verb]:
    """Returns verbs that do not exist and follow the rules, the same for a seed."""
    rng = random.Random(f'{seed} verbs')
    taken = {verb.stem for verb in known}
    verbs: dict[str, Verb] = {}
    while len(verbs) < count:
        stem = ''.join(rng.choice(x) for x in (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS))
        if stem not in taken:
            verbs.setdefault(stem, conjugate(stem + rng.choice(tuple(ENDINGS))))
    return list(verbs.values())
