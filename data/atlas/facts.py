"""The facts of the real world that `data/atlas/pages.py` writes about, each written down once.

One line a country (the members of the United Nations); a backslash joins two lines to one:

  code | article:name pt | name en | capital pt | capital en | continent | languages
  | currency pt | currency en | demonym pt | demonym en

`article` is o, a, os, as, or empty where Portuguese uses none. `languages` are the official ones
(or the main one where the law names none); two or three where the state has so many, the working
ones where it has more. The internet domain is `.code`.
"""

CONTINENTS = {
    'AF': ('África', 'Africa'),
    'AS': ('Ásia', 'Asia'),
    'EU': ('Europa', 'Europe'),
    'OC': ('Oceania', 'Oceania'),
    'NA': ('América do Norte', 'North America'),
    'SA': ('América do Sul', 'South America'),
}

LANGUAGES = dict(
    line.split('=')
    for line in """
ar=árabe/Arabic;en=inglês/English;fr=francês/French;es=espanhol/Spanish;pt=português/Portuguese
de=alemão/German;it=italiano/Italian;nl=neerlandês/Dutch;ps=pachto/Pashto;fa=persa/Persian
sq=albanês/Albanian;ca=catalão/Catalan;hy=armênio/Armenian;az=azerbaijano/Azerbaijani
bn=bengali/Bengali;be=bielorrusso/Belarusian;ru=russo/Russian;dz=butanês/Dzongkha;ay=aimará/Aymara
qu=quíchua/Quechua;bs=bósnio/Bosnian;tn=tsuana/Tswana;ms=malaio/Malay;bg=búlgaro/Bulgarian
rn=kirundi/Kirundi;km=khmer/Khmer;zh=chinês/Chinese;hr=croata/Croatian;el=grego/Greek
tr=turco/Turkish;cs=tcheco/Czech;da=dinamarquês/Danish;ti=tigrínia/Tigrinya;et=estoniano/Estonian
ss=suázi/Swazi;am=amárico/Amharic;fj=fijiano/Fijian;fi=finlandês/Finnish;sv=sueco/Swedish
ka=georgiano/Georgian;ht=crioulo haitiano/Haitian Creole;hu=húngaro/Hungarian;is=islandês/Icelandic
hi=hindi/Hindi;id=indonésio/Indonesian;ku=curdo/Kurdish;ga=irlandês/Irish;he=hebraico/Hebrew
ja=japonês/Japanese;kk=cazaque/Kazakh;sw=suaíli/Swahili;ki=gilbertês/Gilbertese;ko=coreano/Korean
ky=quirguiz/Kyrgyz;lo=laociano/Lao;lv=letão/Latvian;st=sesoto/Sotho;lt=lituano/Lithuanian
lb=luxemburguês/Luxembourgish;mg=malgaxe/Malagasy;ny=chewa/Chewa;dv=divehi/Maldivian
mt=maltês/Maltese;mh=marshallês/Marshallese;ro=romeno/Romanian;mn=mongol/Mongolian
sr=sérvio/Serbian;my=birmanês/Burmese;na=nauruano/Nauruan;ne=nepalês/Nepali;mi=maori/Māori
mk=macedônio/Macedonian;no=norueguês/Norwegian;ur=urdu/Urdu;pl=polonês/Polish;pa=palauano/Palauan
gn=guarani/Guarani;tl=filipino/Filipino;rw=quiniaruanda/Kinyarwanda;sm=samoano/Samoan
cr=crioulo seichelense/Seychellois Creole;sk=eslovaco/Slovak;sl=esloveno/Slovene;so=somali/Somali
af=africâner/Afrikaans;zu=zulu/Zulu;ta=tâmil/Tamil;si=cingalês/Sinhala;tg=tadjique/Tajik
th=tailandês/Thai;te=tétum/Tetum;to=tonganês/Tongan;tk=turcomeno/Turkmen;tv=tuvaluano/Tuvaluan
uk=ucraniano/Ukrainian;uz=uzbeque/Uzbek;bi=bislamá/Bislama;vi=vietnamita/Vietnamese;sh=shona/Shona
bm=bambara/Bambara;ch=comoriano/Comorian;po=tok pisin/Tok Pisin;me=montenegrino/Montenegrin
""".strip()
    .replace('\n', ';')
    .split(';')
)

COUNTRIES = """
af|o:Afeganistão|Afghanistan|Cabul|Kabul|AS|ps fa|afegane|Afghan afghani|afegão|Afghan
al|a:Albânia|Albania|Tirana|Tirana|EU|sq|lek|Albanian lek|albanês|Albanian
dz|a:Argélia|Algeria|Argel|Algiers|AF|ar|dinar argelino|Algerian dinar|argelino|Algerian
ad|:Andorra|Andorra|Andorra-a-Velha|Andorra la Vella|EU|ca|euro|euro|andorrano|Andorran
ao|:Angola|Angola|Luanda|Luanda|AF|pt|kwanza|Angolan kwanza|angolano|Angolan
ag|:Antígua e Barbuda|Antigua and Barbuda|Saint John's|Saint John's|NA|en|\
dólar do Caribe Oriental|East Caribbean dollar|antiguano|Antiguan
ar|a:Argentina|Argentina|Buenos Aires|Buenos Aires|SA|es|peso argentino|Argentine peso|argentino|\
Argentine
am|a:Armênia|Armenia|Erevan|Yerevan|AS|hy|dram|Armenian dram|armênio|Armenian
au|a:Austrália|Australia|Camberra|Canberra|OC|en|dólar australiano|Australian dollar|australiano|\
Australian
at|a:Áustria|Austria|Viena|Vienna|EU|de|euro|euro|austríaco|Austrian
az|o:Azerbaijão|Azerbaijan|Baku|Baku|AS|az|manat azeri|Azerbaijani manat|azerbaijano|Azerbaijani
bs|as:Bahamas|Bahamas|Nassau|Nassau|NA|en|dólar bahamense|Bahamian dollar|bahamense|Bahamian
bh|o:Bahrein|Bahrain|Manama|Manama|AS|ar|dinar bareinita|Bahraini dinar|bareinita|Bahraini
bd|:Bangladesh|Bangladesh|Daca|Dhaka|AS|bn|taka|Bangladeshi taka|bengalês|Bangladeshi
bb|:Barbados|Barbados|Bridgetown|Bridgetown|NA|en|dólar barbadense|Barbadian dollar|barbadiano|\
Barbadian
by|:Belarus|Belarus|Minsk|Minsk|EU|be ru|rublo bielorrusso|Belarusian ruble|bielorrusso|Belarusian
be|a:Bélgica|Belgium|Bruxelas|Brussels|EU|nl fr de|euro|euro|belga|Belgian
bz|:Belize|Belize|Belmopan|Belmopan|NA|en|dólar de Belize|Belize dollar|belizenho|Belizean
bj|o:Benim|Benin|Porto-Novo|Porto-Novo|AF|fr|franco CFA ocidental|West African CFA franc|\
beninense|Beninese
bt|o:Butão|Bhutan|Timbu|Thimphu|AS|dz|ngultrum|Bhutanese ngultrum|butanês|Bhutanese
bo|a:Bolívia|Bolivia|Sucre|Sucre|SA|es qu ay|boliviano|Bolivian boliviano|boliviano|Bolivian
ba|a:Bósnia e Herzegovina|Bosnia and Herzegovina|Sarajevo|Sarajevo|EU|bs hr sr|marco conversível|\
convertible mark|bósnio|Bosnian
bw|:Botsuana|Botswana|Gaborone|Gaborone|AF|en tn|pula|Botswana pula|botsuanês|Motswana
br|o:Brasil|Brazil|Brasília|Brasília|SA|pt|real|Brazilian real|brasileiro|Brazilian
bn|:Brunei|Brunei|Bandar Seri Begawan|Bandar Seri Begawan|AS|ms|dólar de Brunei|Brunei dollar|\
bruneano|Bruneian
bg|a:Bulgária|Bulgaria|Sófia|Sofia|EU|bg|lev|Bulgarian lev|búlgaro|Bulgarian
bf|:Burquina Fasso|Burkina Faso|Uagadugu|Ouagadougou|AF|fr|franco CFA ocidental|\
West African CFA franc|burquinense|Burkinabe
bi|o:Burundi|Burundi|Gitega|Gitega|AF|rn fr|franco do Burundi|Burundian franc|burundiano|Burundian
cv|:Cabo Verde|Cape Verde|Praia|Praia|AF|pt|escudo cabo-verdiano|Cape Verdean escudo|\
cabo-verdiano|Cape Verdean
kh|o:Camboja|Cambodia|Phnom Penh|Phnom Penh|AS|km|riel|Cambodian riel|cambojano|Cambodian
cm|os:Camarões|Cameroon|Iaundê|Yaoundé|AF|fr en|franco CFA central|Central African CFA franc|\
camaronês|Cameroonian
ca|o:Canadá|Canada|Ottawa|Ottawa|NA|en fr|dólar canadense|Canadian dollar|canadense|Canadian
cf|a:República Centro-Africana|Central African Republic|Bangui|Bangui|AF|fr|franco CFA central|\
Central African CFA franc|centro-africano|Central African
td|o:Chade|Chad|Jamena|N'Djamena|AF|fr ar|franco CFA central|Central African CFA franc|chadiano|\
Chadian
cl|o:Chile|Chile|Santiago|Santiago|SA|es|peso chileno|Chilean peso|chileno|Chilean
cn|a:China|China|Pequim|Beijing|AS|zh|yuan|Chinese yuan|chinês|Chinese
co|a:Colômbia|Colombia|Bogotá|Bogotá|SA|es|peso colombiano|Colombian peso|colombiano|Colombian
km|as:Comores|Comoros|Moroni|Moroni|AF|ch ar fr|franco comoriano|Comorian franc|comoriano|Comoran
cg|o:Congo|Republic of the Congo|Brazavile|Brazzaville|AF|fr|franco CFA central|\
Central African CFA franc|congolês|Congolese
cd|a:República Democrática do Congo|Democratic Republic of the Congo|Quinxassa|Kinshasa|AF|fr|\
franco congolês|Congolese franc|congolês|Congolese
cr|a:Costa Rica|Costa Rica|San José|San José|NA|es|colón costa-riquenho|Costa Rican colón|\
costa-riquenho|Costa Rican
ci|a:Costa do Marfim|Ivory Coast|Yamoussoukro|Yamoussoukro|AF|fr|franco CFA ocidental|\
West African CFA franc|marfinense|Ivorian
hr|a:Croácia|Croatia|Zagreb|Zagreb|EU|hr|euro|euro|croata|Croatian
cu|:Cuba|Cuba|Havana|Havana|NA|es|peso cubano|Cuban peso|cubano|Cuban
cy|o:Chipre|Cyprus|Nicósia|Nicosia|EU|el tr|euro|euro|cipriota|Cypriot
cz|a:Tchéquia|Czechia|Praga|Prague|EU|cs|coroa tcheca|Czech koruna|tcheco|Czech
dk|a:Dinamarca|Denmark|Copenhague|Copenhagen|EU|da|coroa dinamarquesa|Danish krone|dinamarquês|\
Danish
dj|o:Djibuti|Djibouti|Djibuti|Djibouti|AF|fr ar|franco do Djibuti|Djiboutian franc|djibutiano|\
Djiboutian
dm|a:Dominica|Dominica|Roseau|Roseau|NA|en|dólar do Caribe Oriental|East Caribbean dollar|\
dominiquês|Dominican
do|a:República Dominicana|Dominican Republic|São Domingos|Santo Domingo|NA|es|peso dominicano|\
Dominican peso|dominicano|Dominican
ec|o:Equador|Ecuador|Quito|Quito|SA|es|dólar americano|United States dollar|equatoriano|Ecuadorean
eg|o:Egito|Egypt|Cairo|Cairo|AF|ar|libra egípcia|Egyptian pound|egípcio|Egyptian
sv|:El Salvador|El Salvador|San Salvador|San Salvador|NA|es|dólar americano|United States dollar|\
salvadorenho|Salvadoran
gq|a:Guiné Equatorial|Equatorial Guinea|Malabo|Malabo|AF|es fr pt|franco CFA central|\
Central African CFA franc|guinéu-equatoriano|Equatorial Guinean
er|a:Eritreia|Eritrea|Asmara|Asmara|AF|ti ar en|nakfa|Eritrean nakfa|eritreu|Eritrean
ee|a:Estônia|Estonia|Talin|Tallinn|EU|et|euro|euro|estoniano|Estonian
sz|:Essuatíni|Eswatini|Mbabane|Mbabane|AF|en ss|lilangeni|Swazi lilangeni|suázi|Swazi
et|a:Etiópia|Ethiopia|Adis Abeba|Addis Ababa|AF|am|birr|Ethiopian birr|etíope|Ethiopian
fj|:Fiji|Fiji|Suva|Suva|OC|en fj hi|dólar fijiano|Fijian dollar|fijiano|Fijian
fi|a:Finlândia|Finland|Helsinque|Helsinki|EU|fi sv|euro|euro|finlandês|Finnish
fr|a:França|France|Paris|Paris|EU|fr|euro|euro|francês|French
ga|o:Gabão|Gabon|Libreville|Libreville|AF|fr|franco CFA central|Central African CFA franc|gabonês|\
Gabonese
gm|a:Gâmbia|Gambia|Banjul|Banjul|AF|en|dalasi|Gambian dalasi|gambiano|Gambian
ge|a:Geórgia|Georgia|Tbilisi|Tbilisi|AS|ka|lari|Georgian lari|georgiano|Georgian
de|a:Alemanha|Germany|Berlim|Berlin|EU|de|euro|euro|alemão|German
gh|:Gana|Ghana|Acra|Accra|AF|en|cedi|Ghanaian cedi|ganês|Ghanaian
gr|a:Grécia|Greece|Atenas|Athens|EU|el|euro|euro|grego|Greek
gd|:Granada|Grenada|Saint George's|St. George's|NA|en|dólar do Caribe Oriental|\
East Caribbean dollar|granadino|Grenadian
gt|a:Guatemala|Guatemala|Cidade da Guatemala|Guatemala City|NA|es|quetzal|Guatemalan quetzal|\
guatemalteco|Guatemalan
gn|a:Guiné|Guinea|Conacri|Conakry|AF|fr|franco guineano|Guinean franc|guineano|Guinean
gw|a:Guiné-Bissau|Guinea-Bissau|Bissau|Bissau|AF|pt|franco CFA ocidental|West African CFA franc|\
guineense|Bissau-Guinean
gy|a:Guiana|Guyana|Georgetown|Georgetown|SA|en|dólar guianense|Guyanese dollar|guianense|Guyanese
ht|o:Haiti|Haiti|Porto Príncipe|Port-au-Prince|NA|fr ht|gourde|Haitian gourde|haitiano|Haitian
hn|:Honduras|Honduras|Tegucigalpa|Tegucigalpa|NA|es|lempira|Honduran lempira|hondurenho|Honduran
hu|a:Hungria|Hungary|Budapeste|Budapest|EU|hu|florim húngaro|Hungarian forint|húngaro|Hungarian
is|a:Islândia|Iceland|Reykjavik|Reykjavik|EU|is|coroa islandesa|Icelandic króna|islandês|Icelander
in|a:Índia|India|Nova Délhi|New Delhi|AS|hi en|rupia indiana|Indian rupee|indiano|Indian
id|a:Indonésia|Indonesia|Jacarta|Jakarta|AS|id|rupia indonésia|Indonesian rupiah|indonésio|\
Indonesian
ir|o:Irã|Iran|Teerã|Tehran|AS|fa|rial iraniano|Iranian rial|iraniano|Iranian
iq|o:Iraque|Iraq|Bagdá|Baghdad|AS|ar ku|dinar iraquiano|Iraqi dinar|iraquiano|Iraqi
ie|a:Irlanda|Ireland|Dublin|Dublin|EU|ga en|euro|euro|irlandês|Irish
il|:Israel|Israel|Jerusalém|Jerusalem|AS|he|novo shekel|Israeli new shekel|israelense|Israeli
it|a:Itália|Italy|Roma|Rome|EU|it|euro|euro|italiano|Italian
jm|a:Jamaica|Jamaica|Kingston|Kingston|NA|en|dólar jamaicano|Jamaican dollar|jamaicano|Jamaican
jp|o:Japão|Japan|Tóquio|Tokyo|AS|ja|iene|Japanese yen|japonês|Japanese
jo|a:Jordânia|Jordan|Amã|Amman|AS|ar|dinar jordaniano|Jordanian dinar|jordaniano|Jordanian
kz|o:Cazaquistão|Kazakhstan|Astana|Astana|AS|kk ru|tenge|Kazakhstani tenge|cazaque|Kazakhstani
ke|o:Quênia|Kenya|Nairóbi|Nairobi|AF|sw en|xelim queniano|Kenyan shilling|queniano|Kenyan
ki|:Kiribati|Kiribati|Taraua do Sul|South Tarawa|OC|en ki|dólar australiano|Australian dollar|\
quiribatiano|I-Kiribati
kp|a:Coreia do Norte|North Korea|Pyongyang|Pyongyang|AS|ko|won norte-coreano|North Korean won|\
norte-coreano|North Korean
kr|a:Coreia do Sul|South Korea|Seul|Seoul|AS|ko|won sul-coreano|South Korean won|sul-coreano|\
South Korean
kw|o:Kuwait|Kuwait|Cidade do Kuwait|Kuwait City|AS|ar|dinar kuwaitiano|Kuwaiti dinar|kuwaitiano|\
Kuwaiti
kg|o:Quirguistão|Kyrgyzstan|Bisqueque|Bishkek|AS|ky ru|som quirguiz|Kyrgyzstani som|quirguiz|Kirghiz
la|o:Laos|Laos|Vientiane|Vientiane|AS|lo|quipe|Lao kip|laosiano|Laotian
lv|a:Letônia|Latvia|Riga|Riga|EU|lv|euro|euro|letão|Latvian
lb|o:Líbano|Lebanon|Beirute|Beirut|AS|ar|libra libanesa|Lebanese pound|libanês|Lebanese
ls|o:Lesoto|Lesotho|Maseru|Maseru|AF|en st|loti|Lesotho loti|lesotiano|Mosotho
lr|a:Libéria|Liberia|Monróvia|Monrovia|AF|en|dólar liberiano|Liberian dollar|liberiano|Liberian
ly|a:Líbia|Libya|Trípoli|Tripoli|AF|ar|dinar líbio|Libyan dinar|líbio|Libyan
li|:Liechtenstein|Liechtenstein|Vaduz|Vaduz|EU|de|franco suíço|Swiss franc|liechtensteinense|\
Liechtensteiner
lt|a:Lituânia|Lithuania|Vilnius|Vilnius|EU|lt|euro|euro|lituano|Lithuanian
lu|:Luxemburgo|Luxembourg|Luxemburgo|Luxembourg|EU|lb fr de|euro|euro|luxemburguês|Luxembourger
mg|:Madagascar|Madagascar|Antananarivo|Antananarivo|AF|mg fr|ariary|Malagasy ariary|malgaxe|Malagasy
mw|o:Malaui|Malawi|Lilongue|Lilongwe|AF|en ny|kwacha malauiano|Malawian kwacha|malauiano|Malawian
my|a:Malásia|Malaysia|Kuala Lumpur|Kuala Lumpur|AS|ms|ringgit|Malaysian ringgit|malaio|Malaysian
mv|as:Maldivas|Maldives|Malé|Malé|AS|dv|rupia maldívia|Maldivian rufiyaa|maldivo|Maldivian
ml|o:Mali|Mali|Bamaco|Bamako|AF|bm|franco CFA ocidental|West African CFA franc|malinês|Malian
mt|:Malta|Malta|Valeta|Valletta|EU|mt en|euro|euro|maltês|Maltese
mh|as:Ilhas Marshall|Marshall Islands|Majuro|Majuro|OC|en mh|dólar americano|United States dollar|\
marshallês|Marshallese
mr|a:Mauritânia|Mauritania|Nuaquexote|Nouakchott|AF|ar|ouguiya|Mauritanian ouguiya|mauritano|\
Mauritanian
mu|:Maurício|Mauritius|Porto Luís|Port Louis|AF|en fr|rupia mauriciana|Mauritian rupee|mauriciano|\
Mauritian
mx|o:México|Mexico|Cidade do México|Mexico City|NA|es|peso mexicano|Mexican peso|mexicano|Mexican
fm|a:Micronésia|Micronesia|Palikir|Palikir|OC|en|dólar americano|United States dollar|micronésio|\
Micronesian
md|a:Moldávia|Moldova|Chisinau|Chișinău|EU|ro|leu moldávio|Moldovan leu|moldávio|Moldovan
mc|:Mônaco|Monaco|Mônaco|Monaco|EU|fr|euro|euro|monegasco|Monegasque
mn|a:Mongólia|Mongolia|Ulan Bator|Ulan Bator|AS|mn|tugrik|Mongolian tögrög|mongol|Mongolian
me|o:Montenegro|Montenegro|Podgorica|Podgorica|EU|me|euro|euro|montenegrino|Montenegrin
ma|o:Marrocos|Morocco|Rabat|Rabat|AF|ar|dirham marroquino|Moroccan dirham|marroquino|Moroccan
mz|:Moçambique|Mozambique|Maputo|Maputo|AF|pt|metical|Mozambican metical|moçambicano|Mozambican
mm|:Mianmar|Myanmar|Nepiedó|Naypyidaw|AS|my|quiate|Burmese kyat|birmanês|Burmese
na|a:Namíbia|Namibia|Windhoek|Windhoek|AF|en|dólar namibiano|Namibian dollar|namibiano|Namibian
nr|:Nauru|Nauru|Yaren|Yaren|OC|en na|dólar australiano|Australian dollar|nauruano|Nauruan
np|o:Nepal|Nepal|Catmandu|Kathmandu|AS|ne|rupia nepalesa|Nepalese rupee|nepalês|Nepalese
nl|os:Países Baixos|Netherlands|Amsterdã|Amsterdam|EU|nl|euro|euro|neerlandês|Dutch
nz|a:Nova Zelândia|New Zealand|Wellington|Wellington|OC|en mi|dólar neozelandês|\
New Zealand dollar|neozelandês|New Zealander
ni|a:Nicarágua|Nicaragua|Manágua|Managua|NA|es|córdoba|Nicaraguan córdoba|nicaraguense|Nicaraguan
ne|o:Níger|Niger|Niamei|Niamey|AF|fr|franco CFA ocidental|West African CFA franc|nigerino|Nigerien
ng|a:Nigéria|Nigeria|Abuja|Abuja|AF|en|naira|Nigerian naira|nigeriano|Nigerian
mk|a:Macedônia do Norte|North Macedonia|Escópia|Skopje|EU|mk sq|dinar macedônio|Macedonian denar|\
macedônio|Macedonian
no|a:Noruega|Norway|Oslo|Oslo|EU|no|coroa norueguesa|Norwegian krone|norueguês|Norwegian
om|:Omã|Oman|Mascate|Muscat|AS|ar|rial omanense|Omani rial|omanense|Omani
pk|o:Paquistão|Pakistan|Islamabad|Islamabad|AS|ur en|rupia paquistanesa|Pakistani rupee|\
paquistanês|Pakistani
pw|:Palau|Palau|Ngerulmud|Ngerulmud|OC|en pa|dólar americano|United States dollar|palauano|Palauan
pa|o:Panamá|Panama|Cidade do Panamá|Panama City|NA|es|balboa|Panamanian balboa|panamenho|Panamanian
pg|a:Papua-Nova Guiné|Papua New Guinea|Port Moresby|Port Moresby|OC|en po|kina|\
Papua New Guinean kina|papuásio|Papua New Guinean
py|o:Paraguai|Paraguay|Assunção|Asunción|SA|es gn|guarani|Paraguayan guaraní|paraguaio|Paraguayan
pe|o:Peru|Peru|Lima|Lima|SA|es qu ay|sol|Peruvian sol|peruano|Peruvian
ph|as:Filipinas|Philippines|Manila|Manila|AS|tl en|peso filipino|Philippine peso|filipino|Filipino
pl|a:Polônia|Poland|Varsóvia|Warsaw|EU|pl|zlóti|Polish złoty|polonês|Polish
pt|:Portugal|Portugal|Lisboa|Lisbon|EU|pt|euro|euro|português|Portuguese
qa|o:Catar|Qatar|Doha|Doha|AS|ar|rial catariano|Qatari riyal|catariano|Qatari
ro|a:Romênia|Romania|Bucareste|Bucharest|EU|ro|leu romeno|Romanian leu|romeno|Romanian
ru|a:Rússia|Russia|Moscou|Moscow|EU|ru|rublo russo|Russian ruble|russo|Russian
rw|:Ruanda|Rwanda|Kigali|Kigali|AF|rw en fr|franco ruandês|Rwandan franc|ruandês|Rwandan
kn|:São Cristóvão e Névis|Saint Kitts and Nevis|Basseterre|Basseterre|NA|en|\
dólar do Caribe Oriental|East Caribbean dollar|são-cristovense|Kittitian
lc|:Santa Lúcia|Saint Lucia|Castries|Castries|NA|en|dólar do Caribe Oriental|\
East Caribbean dollar|santa-lucense|Saint Lucian
vc|:São Vicente e Granadinas|Saint Vincent and the Grenadines|Kingstown|Kingstown|NA|en|\
dólar do Caribe Oriental|East Caribbean dollar|são-vicentino|Vincentian
ws|:Samoa|Samoa|Apia|Apia|OC|sm en|tala|Samoan tālā|samoano|Samoan
sm|:San Marino|San Marino|San Marino|City of San Marino|EU|it|euro|euro|samarinês|Sammarinese
st|:São Tomé e Príncipe|São Tomé and Príncipe|São Tomé|São Tomé|AF|pt|dobra|\
São Tomé and Príncipe dobra|são-tomense|São Toméan
sa|a:Arábia Saudita|Saudi Arabia|Riade|Riyadh|AS|ar|rial saudita|Saudi riyal|saudita|Saudi Arabian
sn|o:Senegal|Senegal|Dacar|Dakar|AF|fr|franco CFA ocidental|West African CFA franc|senegalês|\
Senegalese
rs|a:Sérvia|Serbia|Belgrado|Belgrade|EU|sr|dinar sérvio|Serbian dinar|sérvio|Serbian
sc|as:Seicheles|Seychelles|Vitória|Victoria|AF|cr en fr|rupia seichelense|Seychellois rupee|\
seichelense|Seychellois
sl|a:Serra Leoa|Sierra Leone|Freetown|Freetown|AF|en|leone|Sierra Leonean leone|serra-leonês|\
Sierra Leonean
sg|:Singapura|Singapore|Singapura|Singapore|AS|en ms zh|dólar de Singapura|Singapore dollar|\
singapurense|Singaporean
sk|a:Eslováquia|Slovakia|Bratislava|Bratislava|EU|sk|euro|euro|eslovaco|Slovak
si|a:Eslovênia|Slovenia|Liubliana|Ljubljana|EU|sl|euro|euro|esloveno|Slovene
sb|as:Ilhas Salomão|Solomon Islands|Honiara|Honiara|OC|en|dólar das Ilhas Salomão|\
Solomon Islands dollar|salomônico|Solomon Islander
so|a:Somália|Somalia|Mogadíscio|Mogadishu|AF|so ar|xelim somali|Somali shilling|somali|Somali
za|a:África do Sul|South Africa|Pretória|Pretoria|AF|zu af en|rand|South African rand|\
sul-africano|South African
ss|o:Sudão do Sul|South Sudan|Juba|Juba|AF|en|libra sul-sudanesa|South Sudanese pound|sul-sudanês|\
South Sudanese
es|a:Espanha|Spain|Madri|Madrid|EU|es|euro|euro|espanhol|Spanish
lk|o:Sri Lanka|Sri Lanka|Colombo|Colombo|AS|si ta|rupia do Sri Lanka|Sri Lankan rupee|cingalês|\
Sri Lankan
sd|o:Sudão|Sudan|Cartum|Khartoum|AF|ar en|libra sudanesa|Sudanese pound|sudanês|Sudanese
sr|o:Suriname|Suriname|Paramaribo|Paramaribo|SA|nl|dólar do Suriname|Surinamese dollar|surinamês|\
Surinamer
se|a:Suécia|Sweden|Estocolmo|Stockholm|EU|sv|coroa sueca|Swedish krona|sueco|Swedish
ch|a:Suíça|Switzerland|Berna|Bern|EU|de fr it|franco suíço|Swiss franc|suíço|Swiss
sy|a:Síria|Syria|Damasco|Damascus|AS|ar|libra síria|Syrian pound|sírio|Syrian
tj|o:Tajiquistão|Tajikistan|Duchambé|Dushanbe|AS|tg ru|somoni|Tajikistani somoni|tadjique|Tadzhik
tz|a:Tanzânia|Tanzania|Dodoma|Dodoma|AF|sw en|xelim tanzaniano|Tanzanian shilling|tanzaniano|\
Tanzanian
th|a:Tailândia|Thailand|Bangkok|Bangkok|AS|th|baht|Thai baht|tailandês|Thai
tl|o:Timor-Leste|Timor-Leste|Díli|Dili|AS|pt te|dólar americano|United States dollar|timorense|\
East Timorese
tg|o:Togo|Togo|Lomé|Lomé|AF|fr|franco CFA ocidental|West African CFA franc|togolês|Togolese
to|:Tonga|Tonga|Nuku'alofa|Nuku'alofa|OC|to en|pa'anga|Tongan paʻanga|tonganês|Tongan
tt|:Trinidad e Tobago|Trinidad and Tobago|Port of Spain|Port of Spain|NA|en|\
dólar de Trinidad e Tobago|Trinidad and Tobago dollar|trinitino|Trinidadian
tn|a:Tunísia|Tunisia|Túnis|Tunis|AF|ar|dinar tunisiano|Tunisian dinar|tunisiano|Tunisian
tr|a:Turquia|Turkey|Ancara|Ankara|AS|tr|lira turca|Turkish lira|turco|Turkish
tm|o:Turcomenistão|Turkmenistan|Asgabate|Ashgabat|AS|tk ru|manat turcomeno|Turkmenistani manat|\
turcomeno|Turkmen
tv|:Tuvalu|Tuvalu|Funafuti|Funafuti|OC|en tv|dólar australiano|Australian dollar|tuvaluano|Tuvaluan
ug|:Uganda|Uganda|Campala|Kampala|AF|en sw|xelim ugandense|Ugandan shilling|ugandense|Ugandan
ua|a:Ucrânia|Ukraine|Kiev|Kyiv|EU|uk|hryvnia|Ukrainian hryvnia|ucraniano|Ukrainian
ae|os:Emirados Árabes Unidos|United Arab Emirates|Abu Dhabi|Abu Dhabi|AS|ar|dirham dos Emirados|\
United Arab Emirates dirham|emiradense|Emirati
uk|o:Reino Unido|United Kingdom|Londres|London|EU|en|libra esterlina|British pound|britânico|British
us|os:Estados Unidos|United States|Washington|Washington, D.C.|NA|en|dólar americano|\
United States dollar|americano|American
uy|o:Uruguai|Uruguay|Montevidéu|Montevideo|SA|es|peso uruguaio|Uruguayan peso|uruguaio|Uruguayan
uz|o:Uzbequistão|Uzbekistan|Tashkent|Tashkent|AS|uz ru|som uzbeque|Uzbekistani soʻm|uzbeque|\
Uzbekistani
vu|:Vanuatu|Vanuatu|Port Vila|Port Vila|OC|bi en fr|vatu|Vanuatu vatu|vanuatuense|Ni-Vanuatu
ve|a:Venezuela|Venezuela|Caracas|Caracas|SA|es|bolívar|Venezuelan bolívar|venezuelano|Venezuelan
vn|o:Vietnã|Vietnam|Hanói|Hanoi|AS|vi|dong|Vietnamese đồng|vietnamita|Vietnamese
ye|o:Iêmen|Yemen|Saná|Sana'a|AS|ar|rial iemenita|Yemeni rial|iemenita|Yemeni
zm|a:Zâmbia|Zambia|Lusaca|Lusaka|AF|en|kwacha zambiano|Zambian kwacha|zambiano|Zambian
zw|o:Zimbábue|Zimbabwe|Harare|Harare|AF|en sh|dólar do Zimbábue|Zimbabwean dollar|zimbabuano|\
Zimbabwean
""".strip().splitlines()
